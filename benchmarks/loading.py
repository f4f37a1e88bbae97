"""How fast do cells come from memory and from disk, and does the step wait for them?

    pip install -e ".[dev]" torch==2.13.0 "annbatch[zarrs]"    # the peers; Python 3.12 or later
    python benchmarks/loading.py                    # 50,000 cells x 28,231 genes, a tenth not zero
    python benchmarks/loading.py --cells 5000 --genes 2000    # smaller
    python benchmarks/loading.py --growth           # memory as cells become more

Writes counts to a folder that is removed afterwards (--folder keeps it), prepares a store of them, and
has each way of reading deliver batches of 1000 cells in a process of its own, one after the other, files
in the page cache. Then trains with the default networks and prints how much of a step waited for input.
Prints a table: cells per second, and the most memory that the process had.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

import argparse
import contextlib
import datetime
import itertools
import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

BATCH, LABELS, STUDIES = 1000, 100, 20


def write_cells(path: Path, num_cells: int, num_genes: int) -> None:
    """Counts in a tenth of the genes on average, from half to one and a half of that; sorted by study."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(num_genes // 20, num_genes * 3 // 20, num_cells)
    orders = [generator.permutation(num_genes).astype(np.int32) for _ in range(50)]
    starts = generator.integers(0, num_genes - lengths + 1)
    indices = [
        np.sort(orders[i % 50][a : a + n])
        for i, (a, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    data = (generator.poisson(1.0, lengths.sum()) + 1).astype(np.float32)
    X = sp.csr_matrix(
        (data, np.concatenate(indices), np.append(0, np.cumsum(lengths))), (num_cells, num_genes)
    )
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(
                [f"type {i}" for i in generator.integers(0, LABELS, num_cells)]
            ),
            "study": pd.Categorical(
                [f"study {i * STUDIES // num_cells}" for i in range(num_cells)]
            ),
        },
        index=[str(i) for i in range(num_cells)],
    )
    var = pd.DataFrame(index=[f"gene {i}" for i in range(num_genes)])
    anndata.AnnData(X, obs=obs, var=var).write_h5ad(path)


def rate(batches: Iterator, seconds: float, warm: int = 2) -> float:
    """Cells per second of batches of 1000, over so many seconds."""
    for _ in range(warm):
        next(batches)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH
    return count / passed


def ours(path: Path, **changes) -> Iterator:
    """The batches of training, as they are before they go to the device."""
    import jaxmetric as jm
    from jaxmetric.batches.batches import batches, capacity, reader
    from jaxmetric.config import PUBLISHED
    from jaxmetric.training.loop import draws

    cells = jm.read_cells(path, label_key="label", study_key="study", ontology=None)
    config = jm.Config(**PUBLISHED, batch_size=BATCH, steps_per_epoch=64, **changes)
    draw, read = draws(cells, config), reader(cells)
    size = max(capacity(cells.lengths, draw(epoch), 1) for epoch in range(20))
    for epoch in itertools.count():
        yield from batches(cells, draw(epoch % 20), read, 1, size, config.shuffle_steps)


def one_cell_at_a_time(path: Path) -> Iterator:
    """A torch DataLoader over single cells, weighted, as SCimilarity reads an AnnData in memory."""
    import torch
    from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

    adata = anndata.read_h5ad(path)

    class Cells(Dataset):
        def __len__(self):
            return adata.n_obs

        def __getitem__(self, i):
            return X[i].toarray().flatten(), labels[i], studies[i]  # type: ignore

    def collate(batch):
        profiles, labels, studies = zip(*batch, strict=True)
        return torch.Tensor(np.vstack(profiles)), torch.Tensor(labels), np.array(studies)

    X, labels, studies = (
        adata.X,
        adata.obs["label"].cat.codes.to_numpy(),
        adata.obs["study"].to_numpy(),
    )
    sampler = WeightedRandomSampler(torch.ones(adata.n_obs), adata.n_obs)
    while True:
        yield from DataLoader(Cells(), BATCH, sampler=sampler, collate_fn=collate, drop_last=True)


def backed(path: Path) -> Iterator:
    """Random rows of a backed AnnData."""
    adata, generator = anndata.read_h5ad(path, backed="r"), np.random.default_rng(0)
    while True:
        rows = np.sort(generator.choice(adata.n_obs, BATCH, replace=False))
        yield adata[rows].X[:]  # type: ignore


def annbatch(path: Path) -> Iterator:
    """annbatch's loader on the same store, blocks of 32 cells, with the zarrs pipeline."""
    import zarr
    from annbatch import Loader
    from anndata.io import sparse_dataset

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    group = zarr.open_group(str(path), mode="r")
    loader = Loader(
        chunk_size=32, preload_nchunks=1000, batch_size=BATCH, shuffle=True, drop_last=True
    )
    loader.add_dataset(sparse_dataset(group["X"]))
    while True:
        yield from loader


WAYS: dict[str, tuple[str, Callable[[Path], Iterator]]] = {
    "in memory: torch DataLoader, a cell at a time": ("cells.h5ad", one_cell_at_a_time),
    "in memory: jaxmetric": ("cells.h5ad", ours),
    "backed h5ad: anndata, random rows": ("cells.h5ad", backed),
    "store: annbatch, blocks of 32": ("store", annbatch),
    "store: jaxmetric, blocks of 32": ("store", ours),
    "store: jaxmetric, cell by cell": ("store", lambda path: ours(path, block_size=1)),
}


def waiting(path: Path, steps: int) -> str:
    """What training logs of its pace."""
    import jaxmetric as jm
    from jaxmetric.config import PUBLISHED

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("jaxmetric").addHandler(handler)
    logging.getLogger("jaxmetric").setLevel(logging.INFO)
    cells = jm.read_cells(path, label_key="label", study_key="study", ontology=None)
    config = jm.Config(**PUBLISHED, batch_size=BATCH, max_epochs=2, steps_per_epoch=steps)
    jm.fit(cells, config, progress=False)
    found = [re.search(r"a step: .*", line) for line in said]
    return next(match[0] for match in reversed(found) if match)


def apart(*arguments: str) -> dict:
    """What a process of its own printed."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def part(name: str, folder: Path, cells: int, genes: int, seconds: float, steps: int) -> dict:
    """What one process does."""
    if name == "write":
        write_cells(folder / "cells.h5ad", cells, genes)
        return {}
    start = time.perf_counter()
    if name == "prepare":
        import jaxmetric as jm

        keys = {"label_key": "label", "study_key": "study", "ontology": None}
        jm.prepare(folder / "cells.h5ad", folder / "store", **keys, progress=False)
        found = {"rate": cells / (time.perf_counter() - start)}
    elif name.startswith("train"):
        found = {"said": waiting(folder / name.split()[1], steps)}
    else:
        file, way = WAYS[name]
        found = {"rate": rate(way(folder / file), seconds)}
    return found | {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def growth(genes: int) -> None:
    """The memory that preparing and reading need as cells become more."""
    print("cells     prepare MB  batches of the store MB")
    for cells in (5_000, 10_000, 20_000, 40_000):
        with tempfile.TemporaryDirectory() as folder:
            flags = (f"--cells={cells}", f"--genes={genes}", "--seconds=5", f"--folder={folder}")
            apart(*flags, "--part=write")
            found = [
                apart(*flags, f"--part={n}") for n in ("prepare", "store: jaxmetric, blocks of 32")
            ]
            print(f"{cells:<10}{found[0]['MB']:<12.0f}{found[1]['MB']:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=28_231)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--growth", action="store_true", help="memory as cells become more")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.cells, options.genes, options.seconds, options.steps
    if options.part:
        warnings.simplefilter("ignore")
        print(json.dumps(part(options.part, options.folder, *sizes)))
        return
    if options.growth:
        growth(options.genes)
        return
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        flags = [
            f"--{name}={getattr(options, name)}" for name in ("cells", "genes", "seconds", "steps")
        ]
        flags.append(f"--folder={folder}")
        print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, Python "
              f"{platform.python_version()}; {options.cells} cells x {options.genes} genes")  # fmt: skip
        if not (folder / "cells.h5ad").exists():
            apart(*flags, "--part=write")
        size = (folder / "cells.h5ad").stat().st_size / 1e9
        print(f"{'':48}cells/s      MB      (h5ad: {size:.2f} GB)")
        names = [*WAYS] if (folder / "store").exists() else ["prepare", *WAYS]
        for name in names:
            found = apart(*flags, f"--part={name}")
            said = found.get("failed") or f"{found['rate']:8.0f}{found['MB']:8.0f}"
            print(f"{name:47}{said}", flush=True)
        store = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
        print(f"the store: {store / 1e9:.2f} GB")
        for source in ("cells.h5ad", "store"):
            found = apart(*flags, f"--part=train {source}")
            print(f"training on {source:11} {found.get('failed') or found['said']}", flush=True)


if __name__ == "__main__":
    main()
