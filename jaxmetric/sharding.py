"""Devices and processes: the mesh, and what lies where. No other file knows how many there are.

Arrays are global: `jit` over a `Mesh` splits the cells of a batch over the devices and keeps the
parameters on each, so that the number of devices is no part of the mathematics. Batch normalisation
sees the whole batch, and mining sees every pair.
"""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def cell_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "cells", over the given devices (default: all), those of a process together."""
    devices = jax.devices() if devices is None else list(devices)
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), ("cells",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_cell(mesh: Mesh) -> NamedSharding:
    """The first axis, cells, split over the devices."""
    return NamedSharding(mesh, PartitionSpec("cells"))


def steps_by_cell(mesh: Mesh) -> NamedSharding:
    """The second axis, cells, split over the devices; the first, steps, whole."""
    return NamedSharding(mesh, PartitionSpec(None, "cells"))


def by_backend(cpu: int, accelerator: int) -> int:
    """How much work to do at a time: one number for a CPU, another for a GPU or TPU."""
    return cpu if jax.default_backend() == "cpu" else accelerator


def step_options() -> dict[str, str] | None:
    """Compiler options of a training step. None: XLA's own.

    On a GPU the miner's loop becomes part of the graph of kernels that is launched as a whole. Without
    that, the host waits for each turn of the loop before it can launch what follows: 3.7 in place of
    3.2 ms a step of the published sizes on an H200.
    """
    if jax.default_backend() != "gpu":
        return None
    kinds = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,WHILE,CONDITIONAL"
    return {"xla_gpu_enable_command_buffer": kinds}


def free_memory(mesh: Mesh) -> int | None:
    """Bytes that are free on the fullest of this process's devices; None where devices do not tell."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    if not all("bytes_limit" in one for one in stats):
        return None
    return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)


def own_share(cells: int, mesh: Mesh) -> slice:
    """The cells of a global batch that lie on this process's devices: all of them where it is alone."""
    indices = by_cell(mesh).addressable_devices_indices_map((cells,)).values()
    rows = [index[0].indices(cells) for index in indices if index is not None]
    return slice(min(start for start, _, _ in rows), max(stop for _, stop, _ in rows))


def put_batch(batch, mesh: Mesh):
    """This process's share of a batch, host arrays, as global arrays split by cell."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_cell(mesh), x), batch)


def split_rows(function: Callable, mesh: Mesh) -> Callable:
    """function(rows, shared), each device with its own rows; the results are split by row too."""
    rows, everything = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(rows, everything), out_specs=rows, check_vma=False
    )


def check_divides(cells: int, mesh: Mesh, what: str = "batch_size") -> None:
    """Raises a ValueError unless the devices can share the cells evenly."""
    count = mesh.size
    if cells % count:
        lower, upper = cells // count * count, -(-cells // count) * count
        raise ValueError(
            f"{what} must be a multiple of the number of devices, {count}, but is {cells}; "
            f"use {upper}{f' or {lower}' if lower else ''}."
        )


HEARTBEAT = 30  # seconds after which a silent process counts as dead


def connect(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a job; before anything else of jax runs.

    Args:
      coordinator: address and port of process 0, such as "10.0.0.1:1234". None: all three come from
        the cluster's environment (SLURM, Open MPI, a TPU pod, Kubernetes).
      processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ValueError: when some of the three are given and others are not.
    """
    given = coordinator, processes, process_id
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ValueError(
            "coordinator, processes and process_id go together: give all three, or none of them where "
            f"the cluster's environment tells them; found {given}."
        )
    jax.distributed.initialize(
        *given, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
    )


def is_first_process() -> bool:
    """Whether this process is the one that writes logs."""
    return jax.process_index() == 0


def num_processes() -> int:
    """Processes of this job."""
    return jax.process_count()


def wait_for_all(what: str) -> None:
    """Returns once every process is here."""
    if num_processes() > 1:
        multihost_utils.sync_global_devices(what)


def same_everywhere(arrays):
    """The first process's arrays, for every process."""
    return multihost_utils.broadcast_one_to_all(arrays) if num_processes() > 1 else arrays


def stop_is_due(step: int) -> bool:
    """Whether any process of several was told to stop: the same answer, at the same step, for all."""
    return num_processes() > 1 and multihost_utils.reached_preemption_sync_point(step)


def make_repeatable() -> None:
    """Has XLA use only deterministic kernels on GPUs, as on CPU and TPU; before the first array."""
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
