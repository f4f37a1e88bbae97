"""`fit`: from labelled cells to a trained model."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.split import split, usable_cells
from jaxmetric.compiled import keep_compiled
from jaxmetric.config import Config, DataOn
from jaxmetric.model.directory import digest
from jaxmetric.model.load import load
from jaxmetric.model.metric_learning import MetricLearning
from jaxmetric.sharding import cell_mesh, check_divides, is_first_process, wait_for_all
from jaxmetric.training.feed import check_data_on
from jaxmetric.training.loop import train_epochs
from jaxmetric.training.run import Run, identity
from jaxmetric.training.trained_model import trained_model
from jaxmetric.training.warm_start import check_networks, starting_config, with_genes_of
from jaxmetric.training.watch import Report

log = logging.getLogger("jaxmetric")


def fit(
    cells: Cells,
    config: Config | None = None,
    *,
    directory: str | Path | None = None,
    validation: Sequence[str] | Cells | None = None,
    init: MetricLearning | str | Path | None = None,
    freeze: Sequence[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
    log_every: int = 0,
    tensorboard: bool = False,
    data_on: DataOn = "host",
) -> MetricLearning:
    """Trains a model.

    Args:
      cells: labelled cells, from `read_cells`.
      config: hyperparameters; None: `Config()`.
      directory: the run's directory. It gets `run.json` (data and config of the run), `metrics.jsonl`
        (a row per epoch), `checkpoints/` and, at the end, `model/`. A run that was interrupted goes on
        from its newest checkpoint; a finished one is returned. None: nothing is written.
      validation: names of studies to hold out, or held-out cells. They are scored after each epoch.
      init: a model to start from, ours or imported. The cells' genes are aligned to the model's order
        (read several files with `genes=model.genes`, else only the genes that they share are left).
        New labels join the model's labels, and the networks have the sizes of the model's networks.
        The other hyperparameters are those of `config`; of the model, where `config` is None, with
        nothing frozen.
      freeze: groups of weights that training leaves as they are; replaces `Config.freeze`.
      devices: devices to train on; default all. They share each batch.
      progress: show a progress bar, on a terminal.
      log_every: also log the loss and the pace every so many steps; 0: after each epoch only.
      tensorboard: also write the metrics to `tensorboard/` in the directory (extra `tensorboard`).
      data_on: "host": the host makes the batches, ahead of the step; "device": all cells lie packed in
        the memory of each device, where they must fit, and up to 25 steps run at a time without the
        host. The batches are the same.

    Returns:
      The model: of the last epoch, or of the best one by `config.monitor`.

    Raises:
      ValueError: for data that cannot be trained on, or a directory that belongs to another run.
      Interrupted: a KeyboardInterrupt, after SIGTERM or Ctrl-C, once the step under way is saved.
      NonFiniteError: when a loss or its gradient is NaN or infinite.
      CheckpointWriteError: an OSError, when a checkpoint cannot be written.
    """
    require_cells(cells, "cells")
    keep_compiled()
    start = load(init) if isinstance(init, str | Path) else init
    config = starting_config(config, start)
    if start is not None:
        cells = with_genes_of(cells, start)
    config = with_frozen(config, freeze)
    check_networks(config, start)
    check_monitor(config, validation)
    train, held_out, dropped = training_and_held_out(cells, validation, config)
    mesh = cell_mesh(devices)
    check_divides(config.batch_size, mesh)
    log_cells(train, held_out)
    check_data_on(data_on)
    check_tensorboard(tensorboard, directory)
    with open_run(directory, train, held_out, config, start, tensorboard) as run:
        report, variables = Report(progress, log_every), start and start.variables
        variables, history = train_epochs(
            train, held_out, config, variables, mesh, run, report, data_on
        )
    model = trained_model(variables, history, config, train, held_out, dropped, start)
    if run is not None:
        save_once(model, run.directory / "model")
    return model


def with_frozen(config: Config, freeze: Sequence[str] | None) -> Config:
    """The config with these groups frozen; None leaves the config's own."""
    if freeze is None:
        return config
    groups = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    return dataclasses.replace(config, freeze=groups)


def check_monitor(config: Config, validation: Sequence[str] | Cells | None) -> None:
    """Raises a ValueError where the monitor is a score of held-out cells and there are none."""
    if config.monitor is not None and config.monitor.startswith("val_") and not validation:
        raise ValueError(
            f"monitor is {config.monitor}, but no cells are held out: name studies in validation= / "
            "--validation."
        )


def training_and_held_out(
    cells: Cells, validation: Sequence[str] | Cells | None, config: Config
) -> tuple[Cells, Cells | None, dict[str, int]]:
    """The usable training cells, the held-out cells, and how many cells were dropped by reason.

    Training and held-out cells number their labels alike.
    """
    train, held_out = split(cells, validation)
    num_cells = len(train)
    train, dropped = usable_cells(train, config)
    for reason, number in dropped.items():
        log.warning("dropped %d of %d cells: %s", number, num_cells, reason)
    if held_out is not None:
        names = sorted(set(train.label_names) | set(held_out.label_names))
        train, held_out = train.with_labels(names), held_out.with_labels(names)
    return train, held_out, dropped


def log_cells(train: Cells, held_out: Cells | None) -> None:
    """Logs which cells the model is trained on and which it is validated on."""
    log.info("training on %s", train.describe())
    if held_out is not None:
        log.info("validating on %s", held_out.describe())


def check_tensorboard(tensorboard: bool, directory: str | Path | None) -> None:
    """Raises a ValueError where TensorBoard logs have no directory."""
    if tensorboard and directory is None:
        raise ValueError("tensorboard=True needs a directory= to write to.")


def open_run(
    directory: str | Path | None,
    train: Cells,
    held_out: Cells | None,
    config: Config,
    start: MetricLearning | None,
    tensorboard: bool,
) -> contextlib.AbstractContextManager[Run | None]:
    """The run in the directory, to be closed after training; None where there is no directory."""
    if directory is None:
        return contextlib.nullcontext()
    init = {"init": start and digest(start.variables)}
    return Run(Path(directory), identity(train, held_out, config) | init, tensorboard)


def save_once(model: MetricLearning, directory: Path) -> None:
    """Saves the model of a run unless it is saved already; all processes wait for the first one."""
    if is_first_process() and not directory.exists():
        model.save(directory)
    wait_for_all("model")
