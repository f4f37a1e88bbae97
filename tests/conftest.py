"""Four devices on the host, shapes checked at run time, and small made-up cells."""

import os

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jaxtyping

CHECKED = (
    "bits",
    "mining",
    "losses",
    "metrics",
    "model",
    "expression",
    "train",
    "batches",
    "labels",
    "retrieval",
)
jaxtyping.install_import_hook([f"jaxmetric.{name}" for name in CHECKED], "beartype.beartype")

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = Path(__file__).parent / "data"
TYPES = ("B cell", "T cell", "monocyte", "natural killer cell")


def recorded(name):
    """The arrays of a recorded fixture."""
    with np.load(DATA / name) as arrays:
        return dict(arrays)


def unchecked(function):
    """The function as users have it: shapes checked by itself, not by the import hook."""
    return getattr(function, "__wrapped__", function)


@pytest.fixture(scope="session")
def device():
    """One device: what most tests run on."""
    return jax.devices()[:1]


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


@pytest.fixture
def adata():
    return make_adata()


@pytest.fixture
def h5ad(tmp_path, adata):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path
