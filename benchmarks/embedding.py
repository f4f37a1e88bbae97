"""How fast are cells of a file embedded, beside SCimilarity's CellEmbedding with the same network?

    pip install -e ".[bench]"                 # Python 3.11
    python benchmarks/embedding.py            # 20,000 cells x 28,231 genes, the published network sizes

Each embeds the same h5ad file of counts in a process of its own: reading, aligning, normalising and the
network. Runs alternate; prints the median of cells per second, the most memory, and the ratio.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from loading import write_cells


def ours(folder: Path) -> np.ndarray:
    """jaxmetric: the file is streamed."""
    import jaxmetric as jm

    return jm.load(folder / "ours").embed(folder / "cells.h5ad")


def theirs(folder: Path) -> np.ndarray:
    """SCimilarity: the file is read, aligned and normalised, then embedded."""
    import anndata
    from scimilarity import CellEmbedding
    from scimilarity.utils import align_dataset, lognorm_counts

    embedding = CellEmbedding(str(folder / "theirs"))
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.layers["counts"] = adata.X.copy()
    adata = lognorm_counts(align_dataset(adata, embedding.gene_order))
    return embedding.get_embeddings(adata.X)


def make(folder: Path, cells: int, genes: int) -> None:
    """The file, and a network of random weights in both formats."""
    import jax

    import jaxmetric as jm
    from jaxmetric.config import PUBLISHED
    from jaxmetric.training.step import init_state

    write_cells(folder / "cells.h5ad", cells, genes)
    config = jm.Config(**PUBLISHED)
    names = tuple(f"gene {i}" for i in range(genes))
    variables = jax.device_get(init_state(config, genes).variables)
    model = jm.MetricLearning(config, names, ("type 0",), variables, trained_on={"steps": 0})
    model.save(folder / "ours")
    model.export_scimilarity(folder / "theirs")


def part(name: str, folder: Path, cells: int, genes: int) -> dict:
    """What one process does."""
    if name == "make":
        make(folder, cells, genes)
        return {}
    start = time.perf_counter()
    z = {"ours": ours, "theirs": theirs}[name](folder)
    seconds = time.perf_counter() - start
    np.save(folder / f"{name}.npy", z)
    return {
        "rate": cells / seconds,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=28_231)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(part(options.part, options.folder, options.cells, options.genes)))
        return

    def apart(name: str) -> dict:
        command = [sys.executable, "-W", "ignore", __file__, f"--part={name}", f"--folder={folder}"]
        command += [f"--cells={options.cells}", f"--genes={options.genes}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.strip().splitlines()[-1])

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        apart("make")
        found = [(apart("theirs"), apart("ours")) for _ in range(options.runs)]
        difference = np.abs(np.load(folder / "ours.npy") - np.load(folder / "theirs.npy")).max()
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}; "
          f"{options.cells} cells x {options.genes} genes")  # fmt: skip
    for name, runs in zip(("SCimilarity", "jaxmetric"), zip(*found, strict=True), strict=True):
        rate, megabytes = (np.median([run[key] for run in runs]) for key in ("rate", "MB"))
        print(f"{name:12}{rate:8.0f} cells/s {megabytes:8.0f} MB")
    ratios = [own["rate"] / their["rate"] for their, own in found]
    print(f"ratio {np.median(ratios):.2f}; largest difference of a coordinate {difference:.1e}")


if __name__ == "__main__":
    main()
