"""How cells come to the devices: as batches from the host, or as row numbers of cells already there."""

import logging
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
from jaxmetric.config import Config
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
      step: (state, what is fed, relations) -> (state, infos of one or more steps); to be jitted.
      sharding: where what is fed lies.
      feed: row numbers of batches -> what is fed for each dispatch, with the rows that it steps on.
    """

    step: Callable
    sharding: Any
    feed: Callable[[Int[np.ndarray, "steps batch"]], Iterator[tuple[Any, np.ndarray]]]


def from_host(cells: Cells, config: Config, mesh: Mesh, capacity: int) -> Feed:
    """Batches made by the host, one for each step, a few of them ahead."""
    read = reader(cells)
    own, shares = own_share(config.batch_size, mesh), len(mesh.local_devices)

    def step(state, batch, relations):
        counts = cells.values == "counts"
        return train_step(state, batch, relations, config=config, counts=counts, mesh=mesh)

    def feed(drawn):
        made = batches(cells, drawn[:, own], read, shares, capacity, config.shuffle_steps)
        return prefetch(
            (put_batch(batch, mesh), rows[None]) for batch, rows in zip(made, drawn, strict=True)
        )

    return Feed(step, by_cell(mesh), feed)


def from_device(cells: Cells, config: Config, mesh: Mesh, capacity: int) -> Feed:
    """All cells on each device; the host sends row numbers, for several steps at once.

    Raises:
      ValueError: when the cells do not fit the memory of a device.
    """
    kept = _put(cells, mesh)
    steps = max(k for k in range(1, STEPS_PER_DISPATCH + 1) if config.steps_per_epoch % k == 0)

    def step(state, fed, relations):
        cells_there, rows = fed

        def one(state, rows):
            batch = gather(cells_there, rows, mesh.size, capacity)
            counts = cells.values == "counts"
            return train_step(state, batch, relations, config=config, counts=counts, mesh=mesh)

        return jax.lax.scan(one, state, rows)

    def feed(drawn):
        for rows in np.split(drawn.astype(np.int32), np.arange(steps, len(drawn), steps)):
            yield (kept, jax.device_put(rows, steps_by_cell(mesh))), rows

    return Feed(step, (replicated(mesh), steps_by_cell(mesh)), feed)


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
