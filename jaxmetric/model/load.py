"""Models from disk: our own, and SCimilarity's."""

import logging
from pathlib import Path

import jax
import numpy as np

from jaxmetric.config import Config
from jaxmetric.labels.ontology import CellOntology
from jaxmetric.model.directory import fields_of, load_model, read_meta
from jaxmetric.model.metric_learning import MetricLearning
from jaxmetric.networks.autoencoder import autoencoder
from jaxmetric.scimilarity.directory import read_model

log = logging.getLogger("jaxmetric")


def load(directory: str | Path) -> MetricLearning:
    """Loads a model from its directory, or from the directory of a finished run.

    Raises:
      ValueError: when a file is missing, truncated, changed or foreign; the message names it.
    """
    variables, meta = load_model(_model_directory(Path(directory)), _shapes)
    return MetricLearning(variables=variables, **fields_of(meta))


def load_config(directory: str | Path) -> Config:
    """The config of a model directory, without its arrays."""
    return Config.from_dict(read_meta(_model_directory(Path(directory)))["config"])


def load_scimilarity(directory: str | Path) -> MetricLearning:
    """Loads a SCimilarity model directory, without torch and without executing its pickles.

    `encoder.ckpt`, `layer_sizes.json`, `gene_order.tsv` and `label_ints.csv` must be there;
    `decoder.ckpt` (to reconstruct) and `hyperparameters.json` (to train further) may be absent. The
    config is `Config.scimilarity()` with the directory's hyperparameters. The model reads log1p of
    counts per 10,000; raw counts are normalised for it.

    Raises:
      ValueError: for a file that is missing, damaged, unsafe, or does not fit the others.
    """
    config, genes, labels, variables, steps = read_model(Path(directory))
    ontology = CellOntology.default()
    label_ids = ontology.find(labels)
    unknown = [label for label, id_ in zip(labels, label_ids, strict=True) if id_ is None]
    if unknown:
        log.warning("%d labels are no terms of %s: %s", len(unknown), ontology.version, unknown)
    return MetricLearning(
        config=config,
        genes=genes,
        labels=labels,
        variables=variables,
        label_ids=tuple(label_ids),
        ontology_version=ontology.version,
        trained_on={"imported_from": "SCimilarity", "values": "lognorm", "steps": steps},
    )


def _model_directory(directory: Path) -> Path:
    """The model directory itself, or that of a run."""
    inside = directory / "model"
    return inside if (inside / "model.json").exists() else directory


def _shapes(meta: dict):
    num_genes = len(meta["genes"])
    network = autoencoder(Config.from_dict(meta["config"]), num_genes)
    x = jax.ShapeDtypeStruct((1, num_genes), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return {kind: {name: tree[name] for name in meta["networks"]} for kind, tree in shapes.items()}
