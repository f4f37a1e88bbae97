"""The training loop: epochs of steps, scored, watched and saved."""

import contextlib
import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmetric.batches.batches import capacity
from jaxmetric.batches.sampling import Draw, sampler
from jaxmetric.cells.cells import Cells
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.config import Config, DataOn
from jaxmetric.labels.label_set import label_set, padded
from jaxmetric.networks.components import input_layer
from jaxmetric.sharding import replicated, same_everywhere
from jaxmetric.training.feed import PROGRAMS, feed_of
from jaxmetric.training.history import best_epoch, out_of_patience
from jaxmetric.training.numbers import numbers_of, structure_of
from jaxmetric.training.run import Progress, Run, Snapshot, finite
from jaxmetric.training.signals import stop_requests
from jaxmetric.training.step import init_state
from jaxmetric.training.validation import validator
from jaxmetric.training.watch import Report, Watch

log = logging.getLogger("jaxmetric")


def train_epochs(
    train: Cells,
    held_out: Cells | None,
    config: Config,
    start: dict | None,
    mesh: Mesh,
    run: Run | None,
    report: Report,
    data_on: DataOn,
) -> tuple[dict, list[dict]]:
    """Trains on the cells, from the run's newest checkpoint if there is one.

    Args:
      train: the training cells.
      held_out: cells to score after each epoch; None: there are none.
      config: the hyperparameters.
      start: variables of the networks to start from; None: new ones.
      mesh: the devices.
      run: the run's directory; None: nothing is written.
      report: what is shown while training goes on.
      data_on: where the training cells lie.

    Returns:
      The networks' variables, of the best epoch by the monitor or of the last epoch, and a row of
      metrics per epoch.
    """
    asked, config = config.batch_size, config.for_cells(len(train), mesh.size)
    if config.batch_size < asked:
        log.warning("batches of %d cells, all that there are, not of %d", config.batch_size, asked)
    draw = draws(train, config)
    feed = feed_of(train, config, mesh, fullest_share(train, draw, config, mesh), data_on)
    (state, best), progress = first_snapshot(train, config, start, mesh), Progress()
    if run is not None:
        (state, best), progress = run.resume(Snapshot(state, best))
    relations = padded(label_set(train.label_names, train.ontology))
    relations, numbers = jax.device_put((relations, numbers_of(config)), replicated(mesh))
    validate = None if held_out is None else validator(held_out, relations, config, mesh)
    history = progress.history
    with stop_requests() as asked, Watch(config, run, report, progress, asked) as watch:
        while len(history) < config.max_epochs and not out_of_patience(history, config):
            epoch, done_in_epoch = len(history), len(progress.infos)
            steps_done = epoch * config.steps_per_epoch + done_in_epoch
            with contextlib.closing(feed.inputs(draw(epoch)[done_in_epoch:])) as epoch_inputs:
                for inputs, rows in watch.timed(epoch_inputs):
                    state, infos = feed.step(state, inputs, relations, numbers)
                    steps_done += len(rows)
                    watch.steps_under_way(infos, rows)
                    watch.stop_if_asked(Snapshot(state, best), steps_done)
            row = {"epoch": epoch + 1, "step": (epoch + 1) * config.steps_per_epoch}
            row |= watch.means()
            row |= validate(state.variables) if validate else {}
            history.append(finite(row))
            if best_epoch(history, config) == epoch + 1:
                best = _copy(state.variables)
            watch.epoch_done(row, Snapshot(state, best))
    return jax.device_get(_chosen(Snapshot(state, best), history, config)), history


def draws(train: Cells, config: Config) -> Draw:
    """Which cells each epoch's batches hold; those of a store are drawn in blocks."""
    studies = train.studies if config.sample_across_studies else None
    block = config.block_size if isinstance(train.X, StoredRows) else 1
    return sampler(train.labels, studies, config, block)


def fullest_share(train: Cells, draw: Draw, config: Config, mesh: Mesh) -> int:
    """The values that a device has to hold of a batch, at most over all batches of the run."""
    lengths = train.lengths
    return max(capacity(lengths, draw(epoch), mesh.size) for epoch in range(config.max_epochs))


def first_snapshot(train: Cells, config: Config, start: dict | None, mesh: Mesh) -> Snapshot:
    """The state before the first step, from the variables `start` of a model if given."""
    components = None
    if config.input_components and start is None:
        components = same_everywhere(input_layer(train, config))
    init = initialisation(structure_of(config), len(train.genes), mesh)
    state = init(start, components, numbers_of(config).seed)
    return Snapshot(state, None if config.monitor is None else _copy(state.variables))


@functools.lru_cache(PROGRAMS)
def initialisation(config: Config, num_genes: int, mesh: Mesh) -> Callable:
    """(variables of a model, components, seed) -> the first state, compiled once for all seeds."""
    init = functools.partial(init_state, config, num_genes)
    return jax.jit(init, out_shardings=replicated(mesh))


def _copy(variables: dict) -> dict:
    """The same arrays in memory of their own, which the next step does not take over."""
    return jax.tree.map(jnp.copy, variables)


def _chosen(snapshot: Snapshot, history: list[dict], config: Config) -> dict:
    """The variables of the best epoch, or of the last one where there is no best."""
    if out_of_patience(history, config):
        log.info("stopped: %s got no better for %d epochs", config.monitor, config.patience)
    epoch = best_epoch(history, config)
    if epoch and snapshot.best is not None:
        log.info("the model is that of epoch %d, the best by %s", epoch, config.monitor)
        return snapshot.best
    return snapshot.state.variables
