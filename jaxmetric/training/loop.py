"""The training loop: the one place where the step is jitted and sharded."""

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmetric.batches.batches import capacity
from jaxmetric.batches.sampling import Draw, sampler
from jaxmetric.cells.cells import Cells
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.config import HIGHER_IS_BETTER, Config, DataOn
from jaxmetric.labels.label_set import label_set
from jaxmetric.networks.components import leading_components
from jaxmetric.sharding import replicated, same_everywhere, step_options
from jaxmetric.training.feed import from_device, from_host
from jaxmetric.training.run import Carried, Progress, Run, finite
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
    """The networks' variables, of the last or the best epoch, and a row of metrics per epoch."""
    everywhere, per_epoch = replicated(mesh), config.steps_per_epoch
    draw = draws(train, config)
    lengths = train.lengths
    fullest = max(capacity(lengths, draw(i), mesh.size) for i in range(config.max_epochs))
    feed = (from_device if data_on == "device" else from_host)(train, config, mesh, fullest)
    step = jax.jit(
        feed.step,
        in_shardings=(everywhere, feed.sharding, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
        compiler_options=step_options(),
    )
    init = functools.partial(init_state, config, len(train.genes))
    found = None
    if config.input_components and start is None:
        found = same_everywhere(leading_components(train, config))
    state, progress = jax.jit(init, out_shardings=everywhere)(start, found), Progress()
    best = None if config.monitor is None else _copy(state.variables)
    if run is not None:
        (state, best), progress = run.resume(Carried(state, best))
    history = progress.history
    relations = jax.device_put(label_set(train.label_names, train.ontology), everywhere)
    validate = None if held_out is None else validator(held_out, relations, config, mesh)
    with stop_requests() as asked, Watch(config, run, report, progress, asked) as watch:
        while len(history) < config.max_epochs and not _out_of_patience(history, config):
            epoch, first = len(history), len(progress.infos)
            done = first
            with contextlib.closing(feed.feed(draw(epoch)[first:])) as fed:
                for given, rows in watch.timed(fed):
                    state, infos = step(state, given, relations)
                    done += len(rows)
                    watch.steps_under_way(infos, rows)
                    watch.stop_if_asked(Carried(state, best), epoch * per_epoch + done)
            row = {"epoch": epoch + 1, "step": (epoch + 1) * per_epoch} | watch.means()
            row |= validate(state.variables) if validate else {}
            history.append(finite(row))
            if best_epoch(history, config) == epoch + 1:
                best = _copy(state.variables)
            watch.epoch_done(row, Carried(state, best))
    if _out_of_patience(history, config):
        log.info("stopped: %s got no better for %d epochs", config.monitor, config.patience)
    if epoch := best_epoch(history, config):
        log.info("the model is that of epoch %d, the best by %s", epoch, config.monitor)
        return jax.device_get(best), history
    return jax.device_get(state.variables), history


def draws(train: Cells, config: Config) -> Draw:
    """Which cells each epoch's batches hold; those of a store are drawn in blocks."""
    studies = train.studies if config.sample_across_studies else None
    block = config.block_size if isinstance(train.X, StoredRows) else 1
    return sampler(train.labels, studies, config, block)


def _copy(variables: dict) -> dict:
    """The same arrays in memory of their own, which the next step does not take over."""
    return jax.tree.map(jnp.copy, variables)


def best_epoch(history: list[dict], config: Config) -> int:
    """The number of the first epoch of the best `monitor`, from 1; 0 without monitor or values."""
    sign = -1 if config.monitor in HIGHER_IS_BETTER else 1
    values = [(sign * row[config.monitor], row["epoch"]) for row in _with_value(history, config)]
    return min(values, default=(0, 0))[1]


def _out_of_patience(history: list[dict], config: Config) -> bool:
    best = best_epoch(history, config)
    return config.patience is not None and len(history) - best >= config.patience


def _with_value(history: list[dict], config: Config) -> list[dict]:
    return [row for row in history if row.get(config.monitor or "") is not None]
