"""How fast is the ontology-aware silhouette beside SCimilarity's, and at a million cells?

    python benchmarks/silhouette.py --obo cl-simple.obo      # 1000 cells, beside SCimilarity
    python benchmarks/silhouette.py --scib                   # growing, beside scib-metrics
    python benchmarks/silhouette.py --cells 1000000          # ours alone

Needs the extra `bench` for the peers. Unit-norm embeddings of 128 dimensions, cosine distance. One call
of SCimilarity's and seven of ours, of which the median counts, make a pair; both read the same edges of
the ontology and give the same mean. scib-metrics has no ontology: labels are its clusters.

The floor of ours, measured in the same run: its two matrix products, 4 n k d operations, one for the
sums over labels and one for the distances to them.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
import argparse
import datetime
import functools
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric as jm
from jaxmetric.metric.silhouette import ROWS


def embeddings(n: int) -> np.ndarray:
    z = np.random.default_rng(0).standard_normal((n, 128), np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def floor_seconds(n: int, k: int) -> float:
    """Seconds of the products (k, n) x (n, d) and (n, d) x (d, k), for the n cells in one piece."""
    z, members = jnp.asarray(embeddings(n)), jnp.zeros((n, k))
    products = jax.jit(lambda z, members: (members.T @ z, z @ (members.T @ z).T))
    jax.block_until_ready(products(z, members))
    return float(
        np.median([timed(lambda: jax.block_until_ready(products(z, members)))[0] for _ in range(7)])
    )


def side_by_side(obo: str, repeats: int) -> None:
    from scimilarity import triplet_selector

    load = triplet_selector.import_cell_ontology
    triplet_selector.import_cell_ontology = functools.partial(load, obo)
    selector = triplet_selector.TripletSelector(0.05)
    ontology = jm.CellOntology.from_obo(obo, relations=None)  # SCimilarity reads every relation
    print("labels  peer ms  ours ms  ratio  floor ms  ours/floor  mean: peer  ours")
    for k in (20, 100, 200):
        generator = np.random.default_rng(k)
        names = list(generator.choice(ontology.names, k, replace=False))
        z, labels = embeddings(1000), generator.integers(0, k, 1000).astype(np.int32)
        theirs = functools.partial(selector.get_asw, z, labels, dict(enumerate(names)))
        ours = functools.partial(
            jm.ontology_silhouette,
            z,
            labels,
            descendants=ontology.descendants(names),
            divisor="count-1",
        )
        mean = ours()  # compiles
        times = []
        for _ in range(repeats):
            peer, peer_mean = timed(theirs)
            times.append((peer, np.median([timed(ours)[0] for _ in range(7)])))
        peer, our = np.median(times, axis=0) * 1e3
        ratio = np.median([x / y for x, y in times])
        floor = floor_seconds(1000, k) * 1e3
        print(
            f"{k:<7} {peer:<8.0f} {our:<8.1f} {ratio:<6.0f} {floor:<9.2f} {our / floor:<11.1f} "
            f"{peer_mean:<11.5f} {mean:.5f}",
            flush=True,
        )


def beside_scib(sizes: list[int]) -> None:
    from scib_metrics.utils import silhouette_samples

    print("n        scib-metrics s  ours s  ratio  mean: scib-metrics  ours      (200 labels)")
    for n in sizes:
        z, labels = embeddings(n), np.random.default_rng(0).integers(0, 200, n)
        ours = functools.partial(jm.ontology_silhouette, z, labels)
        ours()  # compiles; the peer's compilation is small beside its work
        peer, widths = timed(functools.partial(silhouette_samples, z, labels, metric="cosine"))
        our, mean = timed(ours)
        print(
            f"{n:<8} {peer:<15.1f} {our:<7.3f} {peer / our:<6.0f} {widths.mean():<19.5f} {mean:.5f}",
            flush=True,
        )


def at_scale(n: int) -> None:
    z, labels = embeddings(n), np.random.default_rng(0).integers(0, 200, n)
    seconds, mean = timed(lambda: jm.ontology_silhouette(z, labels))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{n} cells, 200 labels: {seconds:.1f} s with compilation, mean {mean:.5f}; peak memory "
        f"of the process {peak / 1e9:.2f} GB, embeddings {z.nbytes / 1e9:.2f} GB of it; floor "
        f"{floor_seconds(ROWS, 200) * n / ROWS:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--obo", help="an OBO file of the Cell Ontology, for SCimilarity")
    parser.add_argument("--scib", action="store_true", help="beside scib-metrics")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 10000, 20000, 40000, 80000])
    parser.add_argument("--cells", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    if arguments.obo:
        side_by_side(arguments.obo, arguments.repeats)
    if arguments.scib:
        beside_scib(arguments.sizes)
    if arguments.cells or not (arguments.obo or arguments.scib):
        at_scale(arguments.cells or 1_000_000)


if __name__ == "__main__":
    main()
