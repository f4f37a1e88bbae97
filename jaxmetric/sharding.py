"""Devices: the mesh, and what lies where. No other file knows how many there are.

Arrays are global: `jit` over a `Mesh` splits the cells of a batch over the devices and keeps the
parameters on each, so that the number of devices is no part of the mathematics. Batch normalisation
sees the whole batch, and mining sees every pair.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def cell_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "cells", over the given devices (default: all)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("cells",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_cell(mesh: Mesh) -> NamedSharding:
    """The first axis, cells, split over the devices."""
    return NamedSharding(mesh, PartitionSpec("cells"))


def put_batch(batch, mesh: Mesh):
    """A batch of host arrays as global arrays, split by cell."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_cell(mesh), x), batch)


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError unless the devices can share a batch evenly."""
    count = int(np.prod(list(mesh.shape.values())))
    if batch_size % count:
        lower, upper = batch_size // count * count, -(-batch_size // count) * count
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {count}, but is {batch_size}; "
            f"use {upper}{f' or {lower}' if lower else ''}."
        )
