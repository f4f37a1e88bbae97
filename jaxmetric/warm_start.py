"""Starting from a model: its sizes and its genes are kept, and new labels join its own."""

import dataclasses
import hashlib
import logging

import jax
import numpy as np

from jaxmetric.config import Config
from jaxmetric.data import Cells
from jaxmetric.learner import MetricLearning

log = logging.getLogger("jaxmetric")
SIZES = ("hidden_dim", "latent_dim")


def with_sizes_of(config: Config, model: MetricLearning) -> Config:
    """The config with the sizes of the model's networks, which cannot be other ones.

    Raises:
      ValueError: when the config asks for other sizes.
    """
    sizes = {name: getattr(model.config, name) for name in SIZES}
    for name, size in sizes.items():
        if getattr(config, name) not in (size, getattr(Config(), name)):
            raise ValueError(
                f"Config.{name} is {getattr(config, name)}, but the model to start from has {size}: "
                f"leave out {name}."
            )
    return dataclasses.replace(config, **sizes)


def with_genes_of(cells: Cells, model: MetricLearning) -> Cells:
    """The cells with the model's genes, in its order."""
    aligned = cells.with_genes(model.genes)
    if aligned.missing_genes:
        log.warning(
            "%d of the model's %d genes are not in the data and count as zero",
            len(aligned.missing_genes),
            len(model.genes),
        )
    return aligned


def join_labels(
    model: MetricLearning, cells: Cells, labels: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The model's labels, in their order, then the new ones; and the ids of all.

    With an ontology a label is new when its term is: the model may call it by an older name.
    """
    if cells.ontology is None or model.label_ids is None:
        return (*model.labels, *(name for name in labels if name not in model.labels)), None
    ids = dict(zip(cells.ontology.resolve(labels), labels, strict=True))
    new = [id_ for id_ in ids if id_ not in model.label_ids]
    return (*model.labels, *(ids[id_] for id_ in new)), (*model.label_ids, *new)


def digest(variables: dict) -> str:
    """A SHA-256 of a model's arrays: what a run started from."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        sha.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
