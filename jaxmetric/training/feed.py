"""How cells come to the devices: in batches from the host, or as row numbers of cells that lie there."""

import functools
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
    step_options,
    steps_by_cell,
)
from jaxmetric.training.numbers import structure_of
from jaxmetric.training.step import train_step

log = logging.getLogger("jaxmetric")
STEPS_PER_DISPATCH = 25  # at most, of cells on the devices: a request to stop waits for their end
PROGRAMS = 16  # compiled steps that are kept, for the next run of the same shape


class Feed(NamedTuple):
    """A way for cells to come to the devices.

    Attributes:
      step: (state, inputs, relations, numbers) -> (state, infos of one or more steps), compiled; it takes
        over the memory of the state.
      inputs: row numbers of batches -> for each call of `step`, its inputs and its row numbers.
    """

    step: Callable
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

    def inputs(drawn):
        packed = batches(cells, drawn[:, own], read, shares, capacity, config.shuffle_steps)
        return prefetch(
            (put_batch(batch, mesh), rows[None]) for batch, rows in zip(packed, drawn, strict=True)
        )

    return Feed(step_on_batch(structure_of(config), cells.values == "counts", mesh), inputs)


@functools.lru_cache(PROGRAMS)
def step_on_batch(config: Config, counts: bool, mesh: Mesh) -> Callable:
    """The step on a batch from the host, compiled once for all numbers."""

    def step(state, batch, relations, numbers):
        asked = {"config": config, "counts": counts, "mesh": mesh, "numbers": numbers}
        return train_step(state, batch, relations, **asked)

    return _jitted(step, by_cell(mesh), mesh)


def from_device(cells: Cells, config: Config, mesh: Mesh, capacity: int) -> Feed:
    """All cells lie on each device; the host sends the row numbers of several steps at once.

    Raises:
      ValueError: when the cells do not fit the memory of a device.
    """
    resident_cells = _put(cells, mesh)
    steps = max(k for k in range(1, STEPS_PER_DISPATCH + 1) if config.steps_per_epoch % k == 0)

    def inputs(drawn):
        for rows in np.split(drawn.astype(np.int32), np.arange(steps, len(drawn), steps)):
            yield (resident_cells, jax.device_put(rows, steps_by_cell(mesh))), rows

    counts = cells.values == "counts"
    return Feed(steps_on_rows(structure_of(config), counts, mesh, capacity), inputs)


@functools.lru_cache(PROGRAMS)
def steps_on_rows(config: Config, counts: bool, mesh: Mesh, capacity: int) -> Callable:
    """Steps on cells that lie on the devices, by row numbers; compiled for so many cells and rows."""

    def step(state, inputs, relations, numbers):
        cells_on_device, rows_of_steps = inputs
        asked = {"config": config, "counts": counts, "mesh": mesh, "numbers": numbers}

        def one_step(state, rows):
            batch = gather(cells_on_device, rows, mesh.size, capacity)
            return train_step(state, batch, relations, **asked)

        return jax.lax.scan(one_step, state, rows_of_steps)

    return _jitted(step, (replicated(mesh), steps_by_cell(mesh)), mesh)


def _jitted(step: Callable, inputs: Any, mesh: Mesh) -> Callable:
    """The step jitted; `inputs`: how its inputs are laid out over the devices."""
    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, inputs, everywhere, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
        compiler_options=step_options(),
    )


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
