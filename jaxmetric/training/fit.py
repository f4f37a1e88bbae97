"""`fit`: from labelled cells to a trained model."""

import dataclasses
import logging
import typing
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.split import split, usable_cells
from jaxmetric.config import Config, DataOn
from jaxmetric.model.directory import digest
from jaxmetric.model.load import load
from jaxmetric.model.metric_learning import MetricLearning
from jaxmetric.sharding import (
    cell_mesh,
    check_divides,
    is_first_process,
    num_processes,
    wait_for_all,
)
from jaxmetric.training.loop import best_epoch, train_epochs
from jaxmetric.training.run import Run, identity
from jaxmetric.training.warm_start import check_networks, join_labels, with_genes_of, with_sizes_of
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
      directory: the run's directory. It gets `run.json` (what the run is), `metrics.jsonl` (a row
        per epoch), `checkpoints/` and, at the end, `model/`. A run that was interrupted goes on from
        its newest checkpoint; a finished one is returned. None: nothing is written.
      validation: names of studies to hold out, or held-out cells. They are scored after each epoch.
      init: a model to start from, ours or imported. The cells' genes are aligned to its order (of
        several files, read with `genes=model.genes`, or only shared genes are left), new labels join
        its own, and the sizes of the networks are its sizes. The other hyperparameters are `config`'s;
        None: the model's own, nothing frozen.
      freeze: groups of weights that stay as they are, as in `Config.freeze`, which it replaces.
      devices: devices to train on; default all. They share each batch.
      progress: show a progress bar, on a terminal.
      log_every: also log the loss and the pace every so many steps; 0: after each epoch only.
      data_on: "host": batches are made by the host, ahead of the step; "device": all cells live packed in
        the memory of each device, where they must fit, and up to 25 steps run at a time without the
        host. The batches are the same.
      tensorboard: also write the metrics to `tensorboard/` in the directory (extra `tensorboard`).

    Raises:
      ValueError: for data that cannot be trained on, or a directory that belongs to another run.
      Interrupted: a KeyboardInterrupt, after SIGTERM or Ctrl-C, once the step under way is saved.
      NonFiniteError: when a loss or its gradient is NaN or infinite.
      CheckpointWriteError: an OSError, when a checkpoint cannot be written.
    """
    require_cells(cells, "cells")
    if isinstance(init, str | Path):
        init = load(init)
    if init is None:
        config = config or Config()
    else:
        config = with_sizes_of(config or dataclasses.replace(init.config, freeze=()), init)
        cells = with_genes_of(cells, init)
    if freeze is not None:
        freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze)
        config = dataclasses.replace(config, freeze=freeze)
    check_networks(config, init)
    if config.monitor is not None and config.monitor.startswith("val_") and not validation:
        raise ValueError(
            f"monitor is {config.monitor}, but no cells are held out: name studies in validation= / "
            "--validation."
        )
    train, held_out = split(cells, validation)
    num_cells = len(train)
    train, dropped = usable_cells(train, config)
    for reason, number in dropped.items():
        log.warning("dropped %d of %d cells: %s", number, num_cells, reason)
    if held_out is not None:
        names = sorted(set(train.label_names) | set(held_out.label_names))
        train, held_out = train.with_labels(names), held_out.with_labels(names)
    mesh = cell_mesh(devices)
    check_divides(config.batch_size, mesh)
    trained_on = {
        "cells": len(train),
        "dropped": dropped,
        "studies": [train.study_names[i] for i in np.unique(train.studies)],
        "values": train.values,
        "missing_genes": len(train.missing_genes),
        "validation_cells": 0 if held_out is None else len(held_out),
    }
    if init is not None:
        trained_on["init"] = init.trained_on
    log.info("training on %s", train.describe())
    if held_out is not None:
        log.info("validating on %s", held_out.describe())
    if data_on not in typing.get_args(DataOn):
        raise ValueError(f"data_on must be 'host' or 'device', but is {data_on!r}.")
    if tensorboard and directory is None:
        raise ValueError("tensorboard=True needs a directory= to write to.")
    run = None
    if directory is not None:
        what = identity(train, held_out, config) | {"init": init and digest(init.variables)}
        run = Run(Path(directory), what, tensorboard)
    try:
        start = init and init.variables
        report = Report(progress, log_every)
        variables, history = train_epochs(
            train, held_out, config.for_cells(len(train)), start, mesh, run, report, data_on
        )
    except BaseException:
        if (
            run is not None and num_processes() == 1
        ):  # of several, one may be gone: no waiting for it
            run.close()
        raise
    if run is not None:
        run.close()
    last = history[(best_epoch(history, config) or len(history)) - 1]
    trained_on["steps"] = last["step"] + (init.trained_on.get("steps", 0) if init else 0)
    labels = tuple(train.label_names[i] for i in np.unique(train.labels))
    label_ids = tuple(train.ontology.resolve(labels)) if train.ontology else None
    if init is not None:
        labels, label_ids = join_labels(init, train, labels)
    model = MetricLearning(
        config=config,
        genes=train.genes,
        labels=labels,
        variables=variables,
        label_ids=label_ids,
        ontology_version=train.ontology.version if train.ontology and label_ids else None,
        trained_on=trained_on,
        history=pd.DataFrame(history),
    )
    if run is not None:
        if is_first_process() and not (run.directory / "model").exists():
            model.save(run.directory / "model")
        wait_for_all("model")
    return model
