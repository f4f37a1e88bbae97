"""Devices on the host, shapes checked at run time, and small made-up cells."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

FLAGS = [  # most of the time of most tests is that of compilation
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ["JAX_PLATFORMS"] = "cpu"
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # the workers share the cores: threads of
    os.environ.setdefault(name, "1")  # small products would spend most of their time on waiting
if (
    "JAX_COMPILATION_CACHE_DIR" not in os.environ
):  # one for all workers and the runs that tests start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxmetric-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# a tenth of the time would go into looking for garbage among the objects of compiled programs
gc.set_threshold(100_000, 50, 50)

from pathlib import Path

import jaxtyping

CHECKED = (
    "labels.label_set",
    "cells.packed",
    "batches",
    "metric",
    "scores",
    "networks",
    "training.step",
)
jaxtyping.install_import_hook([f"jaxmetric.{name}" for name in CHECKED], "beartype.beartype")

import jax
import numpy as np
import pytest
from made_up import make_adata

jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = Path(__file__).parent / "data"
DEVICES = jax.devices()  # eight; a test that is about several names them


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
    return DEVICES[:1]


@pytest.fixture(scope="session", autouse=True)
def one_device_unless_told(device):
    """A program for several devices takes longer to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: device)
        patch.setattr(jax, "local_devices", lambda: device)
        yield


@pytest.fixture
def compiled():
    """The names of what is compiled from here on."""
    names = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax._src.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def adata():
    return make_adata()


@pytest.fixture
def h5ad(tmp_path, adata):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path
