"""The training loop: the one place where the step is jitted and sharded."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jaxmetric.batches import draw_epoch, pack, packed_width, sampling_weights
from jaxmetric.config import Config
from jaxmetric.data import Cells, require_cells
from jaxmetric.labels import label_set
from jaxmetric.learner import MetricLearning, load
from jaxmetric.run import Run, finite, identity
from jaxmetric.sharding import by_cell, cell_mesh, check_divides, put_batch, replicated
from jaxmetric.split import split, usable_cells
from jaxmetric.train import init_state, train_step
from jaxmetric.validation import validator
from jaxmetric.warm_start import (
    check_networks,
    digest,
    join_labels,
    with_genes_of,
    with_sizes_of,
)

log = logging.getLogger("jaxmetric")
LOGGED = (
    "epoch",
    "loss",
    "triplet_loss",
    "mse",
    "hard_fraction",
    "val_loss",
    "val_nmse",
    "val_silhouette",
)


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
    tensorboard: bool = False,
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
      tensorboard: also write the metrics to `tensorboard/` in the directory (extra `tensorboard`).

    Raises:
      ValueError: for data that cannot be trained on, or a directory that belongs to another run.
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
    train, held_out = split(cells, validation)
    train, dropped = usable_cells(train, config)
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
        "steps": config.max_epochs * config.steps_per_epoch,
        "validation_cells": 0 if held_out is None else len(held_out),
    }
    if init is not None:
        trained_on["init"] = init.trained_on
        trained_on["steps"] += init.trained_on.get("steps", 0)
    log.info("training on %s", train.describe())
    if held_out is not None:
        log.info("validating on %s", held_out.describe())
    if tensorboard and directory is None:
        raise ValueError("tensorboard=True needs a directory= to write to.")
    run = None
    if directory is not None:
        what = identity(train, held_out, config) | {"init": init and digest(init.variables)}
        run = Run(Path(directory), what, tensorboard)
    try:
        start = init and init.variables
        variables, history = _train(train, held_out, config, start, mesh, run, progress)
    finally:
        if run is not None:
            run.close()
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
    if run is not None and not (run.directory / "model").exists():
        model.save(run.directory / "model")
    return model


def _train(
    train: Cells,
    held_out: Cells | None,
    config: Config,
    start: dict | None,
    mesh: Mesh,
    run: Run | None,
    progress: bool,
) -> tuple[dict, list[dict]]:
    """The networks' variables after the last epoch, and a row of metrics per epoch."""
    everywhere = replicated(mesh)
    step = jax.jit(
        functools.partial(train_step, config=config, counts=train.values == "counts"),
        in_shardings=(everywhere, by_cell(mesh), everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    init = functools.partial(init_state, config, len(train.genes))
    state, history = jax.jit(init, out_shardings=everywhere)(start), []
    if run is not None:
        state, history = run.resume(state)
    relations = jax.device_put(label_set(train.label_names, train.ontology), everywhere)
    validate = None if held_out is None else validator(held_out, relations, config, mesh)
    studies = train.studies if config.sample_across_studies else None
    weights = sampling_weights(train.labels, studies)
    width = packed_width(train)
    with tqdm(
        total=config.max_epochs * config.steps_per_epoch,
        initial=len(history) * config.steps_per_epoch,
        desc="training",
        unit="step",
        disable=not progress or None,
    ) as bar:
        for epoch in range(len(history), config.max_epochs):
            infos = []
            for rows in draw_epoch(weights, config, epoch):
                batch = put_batch(pack(train, rows, width), mesh)
                state, info = step(state, batch, relations)
                if infos:  # of the step before: reading it does not hold up this one
                    bar.set_postfix(epoch=epoch + 1, loss=f"{float(infos[-1]['loss']):.4f}")
                infos.append(info)
                bar.update()
            row = {"epoch": epoch + 1, "step": (epoch + 1) * config.steps_per_epoch}
            row |= jax.tree.map(lambda *x: float(np.mean(x)), *jax.device_get(infos))
            row |= validate(state.variables) if validate else {}
            history.append(finite(row))
            log.info(", ".join(f"{name} {row[name]:.4g}" for name in LOGGED if name in row))
            if run is not None:
                run.record(state, history[-1])
    return jax.device_get(state.variables), history
