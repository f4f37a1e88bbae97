"""Small made-up cells, and what a process of them needs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

TYPES = ("B cell", "T cell", "monocyte", "natural killer cell")


def make_adata(num_cells=120, num_genes=40, num_studies=3, types=TYPES, seed=0, **kwargs):
    """Counts in X of cell types that differ in their genes and studies that differ in depth."""
    generator = np.random.default_rng(seed)
    profiles = generator.gamma(0.4, 1.0, (len(types), num_genes)) + 0.05
    label = np.arange(num_cells) % len(types)
    study = generator.integers(0, num_studies, num_cells)
    depth = generator.uniform(20, 60, num_cells) * (1 + study)
    rate = profiles[label] / profiles[label].sum(1, keepdims=True) * depth[:, None]
    obs = pd.DataFrame(
        {"cell_type": np.array(types)[label], "study": [f"study_{i}" for i in study]},
        index=[f"cell_{i}" for i in range(num_cells)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(num_genes)])
    counts = generator.poisson(rate).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var, **kwargs)


@contextlib.contextmanager
def traced():
    """Yields a function that gives the most bytes that Python has had at a time since here."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak():
    """The most memory that this process has had, in MB; `getrusage` counts that of its parent too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def write(adata, path):
    """Writes h5ad or zarr, by the path's suffix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Writing zarr v2 data")
        adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


def many_cells(num_cells, path):
    """A file of so many cells of 400 values each, CSC where its name says so."""
    adata = make_adata(1000, 2000)
    adata.X = sp.random(1000, 2000, 0.2, "csr", np.float32, 0)
    adata.X.data[:] = 1 + np.arange(len(adata.X.data)) % 50
    whole = anndata.concat([adata] * (num_cells // 1000), index_unique="-")
    whole.X = sp.csr_matrix(whole.X) if path.stem != "csc" else sp.csc_matrix(whole.X)
    return write(whole, path)


def measured(script, *arguments, kill_after=None):
    """The MB that a script says it had at most, run apart; None: it was killed."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    environment = os.environ | {
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "started\n"
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    return float(said) if process.returncode == 0 else None
