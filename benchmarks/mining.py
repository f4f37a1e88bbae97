"""How fast, and in how much memory, are triplets mined beside the peers, and how does it grow?

    python benchmarks/mining.py --obo cl-simple.obo      # beside SCimilarity and pytorch-metric-learning
    python benchmarks/mining.py --growth                 # n = 1000 ... 16000, ours alone

Needs the extra `bench` for the peers. Unit-norm embeddings of 128 dimensions, 20 studies, margin 0.05.
Each peer is given the same batch and asked for the same pairs as ours beside it: with SCimilarity pairs
of different studies in one order, with the ontology; with pytorch-metric-learning, which knows neither,
pairs of one label in both orders. One call of the peer and seven of ours, of which the median counts,
make a pair; the ratio is the median of the pairs' ratios, and memory is the peak above what was held
before the call (peers: resident memory; ours: temporary and output buffers, as the compiled program
states them).

The floor of ours, measured in the same run: its matrix of distances, 2 n^2 d operations, and one
comparison per pair and candidate, pairs * n, at the rate of comparing and counting a matrix of 4 MB.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
import argparse
import datetime
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric as jm
from jaxmetric.metric.distances import pairwise_distances

MARGIN, DIMENSIONS, STUDIES, REST = 0.05, 128, 20, 0.3
SELECTIONS = ("semihard", "hardest", "random")
PML_TYPES = {"semihard": "semihard", "hardest": "all", "random": "all"}


def embeddings(n: int) -> np.ndarray:
    z = np.random.default_rng(0).normal(size=(n, DIMENSIONS)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def num_pairs(labels, studies=None) -> int:
    """Pairs of one label, and of different studies where given, in one order."""

    def alike(codes) -> int:
        sizes = np.unique(codes, return_counts=True)[1]
        return int((sizes * (sizes - 1) // 2).sum())

    labels = np.asarray(labels)
    return alike(labels) - (0 if studies is None else alike(labels * STUDIES + np.asarray(studies)))


def seconds(function: Callable, rest: float = 0.0) -> float:
    """Wall time of a call, to the end of its work on the device; before it, a rest."""
    time.sleep(rest)
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def paired(theirs: Callable, ours: Callable) -> tuple[float, float]:
    """Seconds of a call of the peer, and the median of seven of ours.

    Each begins after a rest: the threads of numpy and torch wait for work at full load for a while.
    """
    return seconds(theirs, REST), float(
        np.median([seconds(ours, REST * (i == 0)) for i in range(7)])
    )


def peak_bytes(function: Callable) -> int:
    """Peak of resident memory during a call above what was resident before it (Linux)."""

    def resident(field: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().split("\n") if field in x)
        return int(line.split()[1]) * 1024

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    jax.block_until_ready(function())
    return resident("VmHWM") - before


def buffer_bytes(compiled) -> int:
    """Temporary and output buffers of a compiled program."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def floor_seconds(z: jax.Array, pairs: int) -> float:
    """Seconds of the distances, and of one comparison per pair and candidate."""
    distances = jax.jit(pairwise_distances)
    compare = jax.jit(lambda x, limit: (x < limit).sum(1))
    x = jnp.zeros((2**10, 2**10))
    jax.block_until_ready((distances(z), compare(x, 0.5)))
    product = np.median([seconds(lambda: distances(z)) for _ in range(7)])
    rate = x.size / np.median([seconds(lambda: compare(x, 0.5)) for _ in range(31)])
    return product + pairs * len(z) / rate


def side_by_side(obo: str, repeats: int) -> None:
    import torch
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import TripletMarginMiner
    from scimilarity import triplet_selector

    torch.set_num_threads(2)
    load = triplet_selector.import_cell_ontology
    triplet_selector.import_cell_ontology = functools.partial(load, obo)
    ontology = jm.CellOntology.from_obo(obo)
    print("\npeer         labels selection pairs   peer ms  ours ms  ratio  compile s  "
          "floor ms  ours/floor  peer MB  ours MB")  # fmt: skip
    for k in (20, 100, 200):
        generator = np.random.default_rng(k)
        names = list(generator.choice(ontology.names, k, replace=False))
        z, labels = embeddings(1000), generator.integers(0, k, 1000).astype(np.int32)
        studies = generator.integers(0, STUDIES, 1000).astype(np.int32)
        related = ontology.related(names)
        for selection in SELECTIONS:
            selector = triplet_selector.TripletSelector(MARGIN, selection)
            miner = TripletMarginMiner(
                MARGIN,
                PML_TYPES[selection],
                distance=LpDistance(normalize_embeddings=False, power=2),
            )
            theirs = functools.partial(
                selector.get_triplets_idx, z, labels, dict(enumerate(names)), studies
            )
            beside = [
                ("SCimilarity", False, {"studies": studies, "related": related}, theirs),
                ("PML", True, {}, functools.partial(miner, *map(torch.from_numpy, (z, labels)))),
            ]
            for peer, both_orders, options, theirs in beside:
                row = compare(z, labels, options, selection, both_orders, theirs, repeats)
                print(f"{peer:<12} {k:<6} {selection:<9} {row}", flush=True)


def compare(z, labels, options, selection, both_orders, theirs, repeats) -> str:
    mine = jax.jit(
        functools.partial(
            jm.mine_triplets, margin=MARGIN, selection=selection, both_orders=both_orders
        )
    )
    z, labels = jnp.asarray(z), jnp.asarray(labels)
    options = {name: jnp.asarray(value) for name, value in options.items()}
    key = jax.random.key(0)
    start = time.perf_counter()
    compiled = mine.lower(key, z, labels, **options).compile()
    compile_seconds = time.perf_counter() - start
    ours = functools.partial(mine, key, z, labels, **options)
    jax.block_until_ready(ours())
    pairs = num_pairs(labels, options.get("studies")) * (2 if both_orders else 1)
    memory = peak_bytes(theirs), buffer_bytes(compiled)
    times = np.array([paired(theirs, ours) for _ in range(repeats)])
    ratio = np.median(times[:, 0] / times[:, 1])
    peer, our = np.median(times, axis=0)
    floor = floor_seconds(z, pairs)
    return (
        f"{pairs:<7} {peer * 1e3:<8.0f} {our * 1e3:<8.1f} {ratio:<6.0f} {compile_seconds:<10.1f} "
        f"{floor * 1e3:<9.1f} {our / floor:<11.1f} {memory[0] / 1e6:<8.0f} {memory[1] / 1e6:.0f}"
    )


def growth(sizes: list[int], repeats: int) -> None:
    print(
        "\nn      pairs    ours ms  floor ms  ours/floor  MB      (200 labels, semihard, one order)"
    )
    found = []
    for n in sizes:
        generator = np.random.default_rng(n)
        z, labels = jnp.asarray(embeddings(n)), jnp.asarray(generator.integers(0, 200, n), "int32")
        studies = jnp.asarray(generator.integers(0, STUDIES, n), "int32")
        mine = jax.jit(functools.partial(jm.mine_triplets, margin=MARGIN))
        compiled = mine.lower(jax.random.key(0), z, labels, studies=studies).compile()
        run = functools.partial(compiled, jax.random.key(0), z, labels, studies=studies)
        memory = buffer_bytes(compiled)
        pairs = num_pairs(labels, studies)
        time_, floor = np.median([seconds(run) for _ in range(repeats)]), floor_seconds(z, pairs)
        found.append(time_)
        print(
            f"{n:<6} {pairs:<8} {time_ * 1e3:<8.1f} {floor * 1e3:<9.1f} {time_ / floor:<11.1f} "
            f"{memory / 1e6:.0f}",
            flush=True,
        )
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    print(f"time grows as n^{slope:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--obo", help="an OBO file of the Cell Ontology, for SCimilarity")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000, 16000])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"{datetime.date.today()}, {device.device_kind} x {jax.device_count()}, "
          f"{platform.machine()}, jax {jax.__version__}")  # fmt: skip
    if arguments.obo:
        side_by_side(arguments.obo, arguments.repeats)
    if arguments.growth or not arguments.obo:
        growth(arguments.sizes, arguments.repeats)


if __name__ == "__main__":
    main()
