"""How cells come to the devices: in batches from the host, or as row numbers of cells that lie there."""

import logging
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxmetric.batches.batches import batches, reader
from jaxmetric.batches.prefetch import prefetch
from jaxmetric.batches.resident import Resident, gather, num_bytes, resident
from jaxmetric.cells.cells import Cells
from jaxmetric.cells.packed import index_type, pack_rows
from jaxmetric.config import Config, DataOn
from jaxmetric.sharding import (
    by_cell,
    free_memory,
    own_share,
    put_batch,
    replicated,
    steps_by_cell,
)
from jaxmetric.training.step import train_step

log = logging.getLogger("jaxmetric")
STEPS_PER_DISPATCH = 25  # at most, of cells on the devices: a request to stop waits for their end


class Feed(NamedTuple):
    """A way for cells to come to the devices.

    Attributes:
      step: (state, inputs, relations) -> (state, infos of one or more steps); to be jitted.
      sharding: how the inputs are laid out over the devices.
      inputs: row numbers of batches -> for each call of `step`, its inputs and its row numbers.
    """

    step: Callable
    sharding: Any
    inputs: Callable[[Int[np.ndarray, "steps batch"]], Iterator[tuple[Any, np.ndarray]]]


def check_data_on(data_on: str) -> None:
    """Raises a ValueError unless `data_on` is a place for cells."""
    if data_on not in typing.get_args(DataOn):
        raise ValueError(f"data_on must be 'host' or 'device', but is {data_on!r}.")


def feed_of(cells: Cells, config: Config, mesh: Mesh, capacity: int, data_on: DataOn) -> Feed:
    """The feed from where the cells lie; `capacity`: values in the fullest share of a batch."""
    feed = from_device if data_on == "device" else from_host
    return feed(cells, config, mesh, capacity)


def from_host(cells: Cells, config: Config, mesh: Mesh, capacity: int) -> Feed:
    """The host makes a batch for each step, a few steps ahead."""
    read = reader(cells)
    own, shares = own_share(config.batch_size, mesh), len(mesh.local_devices)

    def step(state, batch, relations):
        counts = cells.values == "counts"
        return train_step(state, batch, relations, config=config, counts=counts, mesh=mesh)

    def inputs(drawn):
        packed = batches(cells, drawn[:, own], read, shares, capacity, config.shuffle_steps)
        return prefetch(
            (put_batch(batch, mesh), rows[None]) for batch, rows in zip(packed, drawn, strict=True)
        )

    return Feed(step, by_cell(mesh), inputs)


def from_device(cells: Cells, config: Config, mesh: Mesh, capacity: int) -> Feed:
    """All cells lie on each device; the host sends the row numbers of several steps at once.

    Raises:
      ValueError: when the cells do not fit the memory of a device.
    """
    resident_cells = _put(cells, mesh)
    steps = max(k for k in range(1, STEPS_PER_DISPATCH + 1) if config.steps_per_epoch % k == 0)

    def step(state, inputs, relations):
        cells_on_device, rows_of_steps = inputs

        def one_step(state, rows):
            batch = gather(cells_on_device, rows, mesh.size, capacity)
            counts = cells.values == "counts"
            return train_step(state, batch, relations, config=config, counts=counts, mesh=mesh)

        return jax.lax.scan(one_step, state, rows_of_steps)

    def inputs(drawn):
        for rows in np.split(drawn.astype(np.int32), np.arange(steps, len(drawn), steps)):
            yield (resident_cells, jax.device_put(rows, steps_by_cell(mesh))), rows

    return Feed(step, (replicated(mesh), steps_by_cell(mesh)), inputs)


def _put(cells: Cells, mesh: Mesh) -> Resident:
    kind = np.dtype(cells.value_type)
    needed = num_bytes(
        cells.lengths, np.dtype(index_type(len(cells.genes))).itemsize + kind.itemsize
    )
    free = free_memory(mesh)
    if free is not None and needed > free:
        raise ValueError(
            f"the {len(cells)} cells need {needed / 1e9:.1f} GB on each device, of which "
            f"{free / 1e9:.1f} GB are free: use data_on='host' / --data-on host."
        )
    log.info("%d cells on each device: %.2f GB", len(cells), needed / 1e9)
    packed = pack_rows(cells.matrix(), kind.type)
    return jax.device_put(resident(packed, cells.labels, cells.studies), replicated(mesh))
