"""Training that starts from a model keeps its sizes and genes, and adds new labels to its labels."""

import dataclasses
import logging

from jaxmetric.cells.cells import Cells
from jaxmetric.config import Config
from jaxmetric.model.metric_learning import MetricLearning

log = logging.getLogger("jaxmetric")


def starting_config(config: Config | None, model: MetricLearning | None) -> Config:
    """The config to train with: with the sizes of the model's networks, if training starts from one.

    Without a config: the model's own with nothing frozen, or the defaults.
    """
    if model is None:
        return config or Config()
    return with_sizes_of(config or dataclasses.replace(model.config, freeze=()), model)


def with_sizes_of(config: Config, model: MetricLearning) -> Config:
    """The config with the model's size in place of each size that is a preset's.

    Raises:
      ValueError: when the config asks for other sizes.
    """
    presets = Config().sizes, Config.scimilarity().sizes
    unchosen = {
        name: size
        for name, size in model.config.sizes.items()
        if config.sizes[name] in (preset[name] for preset in presets)
    }
    config = dataclasses.replace(config, **unchosen)
    check_sizes(config, model)
    return config


def check_sizes(config: Config, model: MetricLearning) -> None:
    """Raises a ValueError unless the config has the sizes of the model's networks."""
    for name, size in model.config.sizes.items():
        if config.sizes[name] != size:
            raise ValueError(
                f"Config.{name} is {config.sizes[name]}, but the model to start from has {size}: "
                "leave it out."
            )


def check_networks(config: Config, model: MetricLearning | None) -> None:
    """Logs which groups are frozen and whether the decoder is new.

    Raises:
      ValueError: when a new decoder is to be frozen.
    """
    frozen = config.frozen_groups
    if frozen:
        log.info("frozen: %s", ", ".join(frozen))
    if model is not None and not model.has_decoder:
        log.warning("the model to start from has no decoder: a new one is trained")
        if any(group.startswith("decoder/") for group in frozen):
            raise ValueError(
                "the model to start from has no decoder, so there is none to freeze: leave "
                f"{', '.join(config.freeze)} out of freeze."
            )


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
) -> tuple[tuple[str, ...], tuple[str | None, ...] | None]:
    """The model's labels, in their order, then the new labels; and the ontology ids of all.

    With an ontology a label is new when its term is: the model may call it by another name.
    """
    if cells.ontology is None or model.label_ids is None:
        return (*model.labels, *(name for name in labels if name not in model.labels)), None
    ids = dict(zip(cells.ontology.resolve(labels), labels, strict=True))
    new = [id_ for id_ in ids if id_ not in model.label_ids]
    return (*model.labels, *(ids[id_] for id_ in new)), (*model.label_ids, *new)
