"""How long, and in how much memory, are retrieval scores of an atlas computed?

    python benchmarks/retrieval.py                   # 100,000 query cells x 100,000 reference cells
    python benchmarks/retrieval.py --cells 10000

Every reference cell of every query cell is ranked, exactly. Embeddings of 128 dimensions, 200 labels.
The floor: the distances, 2 n^2 d operations, and numpy's sort of n rows of n integers of 64 bits on
every core, extrapolated from a chunk in the same run.
"""

import argparse
import datetime
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

import jaxmetric as jm


def cells(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 200, n)
    return generator.standard_normal((n, 128), np.float32) + labels[:, None] / 100, labels


def timed(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def floor_seconds(n: int) -> float:
    """Distances and sorts of all rows, from those of 64 rows."""
    rows, cores = 64, os.cpu_count() or 1
    query, reference = (jax.numpy.asarray(cells(size, 0)[0]) for size in (rows, n))
    distances = jax.jit(jm.pairwise_distances)
    distances(query, reference).block_until_ready()
    product = timed(lambda: distances(query, reference))
    keys = np.random.default_rng(0).integers(0, 2**63, (cores, rows // cores, n))
    with ThreadPoolExecutor(cores) as threads:
        sort = timed(lambda: list(threads.map(lambda chunk: chunk.sort(axis=1), keys)))
    return (product + sort) * n / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    n = parser.parse_args().cells
    query, truth = cells(n, 0)
    reference, known = cells(n, 1)
    start = time.perf_counter()
    scores = jm.retrieval_scores(query, truth, reference, known)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind} x {os.cpu_count()} cores")
    print(", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    print(
        f"{n} x {n} cells: {seconds:.0f} s, floor {floor_seconds(n):.0f} s, peak memory of the "
        f"process {peak / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
