"""The hyperparameters that are arguments of a compiled step, and the rest of a config, compiled in.

Another seed, margin or learning rate must not need another program: compiling takes longer than a small
training.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxmetric.config import Config


class Numbers(NamedTuple):
    """The hyperparameters that a compiled step is given, so that other values need no other program.

    Attributes are those of `Config`.
    """

    seed: Any
    margin: Any
    triplet_loss_weight: Any
    l1: Any
    learning_rate: Any
    weight_decay: Any
    warmup_steps: Any
    max_epochs: Any
    steps_per_epoch: Any


COUNTS = ("warmup_steps", "max_epochs", "steps_per_epoch")
HOST_ONLY = (  # fields of `Config` that no step depends on
    *("monitor", "patience", "singleton_labels", "silhouette_divisor", "batch_size"),
    *("sampling", "cells_per_class", "block_size", "shuffle_steps"),
)


def numbers_of(config: Config) -> Numbers:
    """The config's numbers, as arrays."""

    def array(name: str) -> np.generic:
        value = getattr(config, name)
        if name == "seed":
            return np.uint32(value)
        return np.int32(min(value, 2**31 - 1)) if name in COUNTS else np.float32(value)

    return Numbers(*map(array, Numbers._fields))


def structure_of(config: Config) -> Config:
    """The config with the defaults in place of all that is no part of a compiled step."""
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    return dataclasses.replace(
        config, **{name: fields[name] for name in (*Numbers._fields, *HOST_ONLY)}
    )
