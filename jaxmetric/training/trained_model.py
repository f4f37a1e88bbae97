"""The model that a training run ends with: variables, labels, and a record of the training."""

from typing import Any

import numpy as np
import pandas as pd

from jaxmetric.cells.cells import Cells
from jaxmetric.config import Config
from jaxmetric.model.metric_learning import MetricLearning
from jaxmetric.training.history import model_row
from jaxmetric.training.warm_start import join_labels


def trained_model(
    variables: dict,
    history: list[dict],
    config: Config,
    train: Cells,
    held_out: Cells | None,
    dropped: dict[str, int],
    start: MetricLearning | None,
) -> MetricLearning:
    """The model with these variables of its networks.

    Args:
      variables: `params` and `batch_stats` of the networks.
      history: a row of metrics per epoch.
      config: the hyperparameters.
      train: the training cells.
      held_out: the held-out cells.
      dropped: how many cells were dropped before training, by reason.
      start: the model that training started from.
    """
    labels, label_ids = labels_of(train, start)
    steps = model_row(history, config)["step"]
    return MetricLearning(
        config=config,
        genes=train.genes,
        labels=labels,
        variables=variables,
        label_ids=label_ids,
        ontology_version=train.ontology.version if train.ontology and label_ids else None,
        trained_on=record_of(train, held_out, dropped, steps, start),
        history=pd.DataFrame(history),
    )


def labels_of(
    train: Cells, start: MetricLearning | None
) -> tuple[tuple[str, ...], tuple[str | None, ...] | None]:
    """The labels of the training cells and their ontology ids, joined to those of `start`."""
    labels = tuple(train.label_names[i] for i in np.unique(train.labels))
    label_ids = tuple(train.ontology.resolve(labels)) if train.ontology else None
    return (labels, label_ids) if start is None else join_labels(start, train, labels)


def record_of(
    train: Cells,
    held_out: Cells | None,
    dropped: dict[str, int],
    steps: int,
    start: MetricLearning | None,
) -> dict[str, Any]:
    """`MetricLearning.trained_on`: the cells, and the number of steps, those of `start` included."""
    record = {
        "cells": len(train),
        "dropped": dropped,
        "studies": [train.study_names[i] for i in np.unique(train.studies)],
        "values": train.values,
        "missing_genes": len(train.missing_genes),
        "validation_cells": 0 if held_out is None else len(held_out),
    }
    if start is not None:
        record["init"] = start.trained_on
        steps += start.trained_on.get("steps", 0)
    return record | {"steps": steps}
