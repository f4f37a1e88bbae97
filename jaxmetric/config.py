"""What a training run and a preparation can be told, as flat, frozen, validated records."""

import dataclasses
import fnmatch
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

Metric = Literal["sqeuclidean", "euclidean", "cosine"]
Selection = Literal["semihard", "hardest", "random"]
Divisor = Literal["count", "count-1"]
ComputeDtype = Literal["float32", "bfloat16"]
Values = Literal["counts", "lognorm"]
DataOn = Literal["host", "device"]
Sampling = Literal["weighted", "uniform", "per_class"]
Monitor = Literal[
    "loss",
    "triplet_loss",
    "mse",
    "val_loss",
    "val_triplet_loss",
    "val_mse",
    "val_nmse",
    "val_silhouette",
    "val_evaluation_metric",
]
HIGHER_IS_BETTER = ("val_silhouette",)
# SCimilarity's networks, and what it trains them with
PUBLISHED = {"hidden_dim": (1024, 1024, 1024), "input_components": 0, "learning_rate": 5e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The hyperparameters of a run. Every field is also a flag of `jaxmetric train`.

    Raises:
      ValueError: when a value is out of range; the message names the field, the range and the value.
    """

    hidden_dim: tuple[int, ...] = (256,)
    """Sizes of the encoder's hidden layers; the decoder has them reversed."""
    latent_dim: int = 128
    """Size of the embedding."""
    input_components: int = 400
    """Components of the training cells, by truncated SVD, that the encoder's input is made of; 0: it
    reads the genes, as in SCimilarity."""
    discriminants: bool = True
    """The encoder reads the discriminants of the labels among these components, and half of the embedding
    is these themselves, so that training starts where they end; otherwise it reads the components."""
    dropout: float = 0.5
    """Share of units dropped before each hidden layer but the encoder's first."""
    input_dropout: float = 0.4
    """Share of genes dropped before the encoder's first layer."""

    margin: float = 0.05
    """A negative must be farther from the anchor than the positive is, by this much."""
    negative_selection: Selection = "semihard"
    """Which negative a pair gets: a random one inside the margin, the nearest, or any violating."""
    metric: Metric = "sqeuclidean"
    """Distance of the triplet loss, and of the miner unless `mining_metric` names another."""
    mining_metric: Metric | None = None
    """Distance of the miner; None: `metric`, so that the miner's margin is the loss's margin."""
    both_orders: bool = True
    """Mine each pair of cells in both orders; otherwise the earlier cell of the batch is the anchor."""
    sample_across_studies: bool = True
    """Anchor and positive must come from different studies."""
    perturb_labels_fraction: float = 0.0
    """Share of each training batch whose labels are coarsened one level up the ontology."""
    singleton_labels: Literal["drop", "coarsen"] = "drop"
    """Labels found in one study only: drop their cells, or give them the nearest parent that is
    present in the training cells. Not applied when `sample_across_studies` is off."""

    triplet_loss_weight: float = 0.5
    """w in: loss = w * triplet + (1 - w) * mse."""
    empty_triplet_loss: Literal["zero", "margin"] = "zero"
    """Triplet loss of a batch without triplets. SCimilarity: the margin, with hard fraction NaN."""
    l1: float = 1e-4
    """L1 penalty of one layer of the encoder, times the learning rate of the step."""
    l1_layer: Literal["first", "bottleneck"] = "first"
    """Which layer the L1 penalty is on: genes to first hidden layer, or last hidden layer to
    embedding. SCimilarity: the bottleneck, though it means the first."""

    silhouette_divisor: Divisor = "count"
    """What the sum of distances to a cell's own cluster, of `count` other cells, is divided by in the
    validation's silhouette width. SCimilarity: count - 1, which is no mean."""

    learning_rate: float = 1e-3
    """AdamW's first learning rate; it follows half a cosine over `max_epochs`, constant in an epoch."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, on every parameter."""
    clip_norm: float | None = None
    """Scale a step's gradient down to this norm where it is larger."""
    warmup_steps: int = 0
    """First steps, in which the learning rate rises from near 0 to that of its epoch."""
    monitor: Monitor | None = None
    """The metric of an epoch by which the best epoch's weights become the model. None: the last's."""
    patience: int | None = None
    """Stop after this many epochs in which `monitor` got no better. None: never."""
    max_epochs: int = 20
    """Passes of `steps_per_epoch` batches."""
    steps_per_epoch: int = 0
    """Batches drawn in an epoch; 0: as many as there are cells for, one pass over the training cells."""
    batch_size: int = 512
    """Cells in a batch, over all devices."""
    sampling: Sampling = "weighted"
    """How batches are drawn. weighted: as in SCimilarity, more of rare labels and of rare studies;
    uniform: every cell in turn; per_class: `cells_per_class` cells of each label of the batch."""
    cells_per_class: int = 10
    """Cells of each label in a batch of `sampling` per_class."""
    block_size: int = 32
    """Neighbouring cells that are drawn and read together from a store; 1: each by itself. Cells in
    memory are drawn one by one."""
    shuffle_steps: int = 32
    """Batches over which the cells of a store's blocks are shuffled; so many are read at a time."""
    freeze: tuple[str, ...] = ()
    """Groups of weights that stay as they are, moving statistics included: "encoder", "decoder",
    "encoder/hidden_0" ... "encoder/latent", "decoder/hidden_0" ... "decoder/output", or patterns:
    "encoder/hidden_*" is every layer of the encoder but the bottleneck."""
    compute_dtype: ComputeDtype = "float32"
    """Type of the factors of the networks' matrix products; parameters, statistics, distances and losses
    are float32. How float32 factors are multiplied is JAX's `jax_default_matmul_precision`: by default in
    TF32 on recent NVIDIA GPUs, in bfloat16 on TPUs."""
    seed: int = 0
    """Seed of everything random: weights, dropout, batches, mining."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name, (expected, holds) in _ALLOWED.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"Config.{name} must be {expected}, but is {value!r:.100}.")
        if self.sampling == "per_class" and self.batch_size % self.cells_per_class:
            raise ValueError(
                f"Config.batch_size is {self.batch_size}, which is no multiple of "
                f"Config.cells_per_class, {self.cells_per_class}, as sampling='per_class' needs."
            )
        if self.patience is not None and self.monitor is None:
            raise ValueError(
                "Config.patience needs Config.monitor, the metric that is to get better: one of "
                f"{', '.join(typing.get_args(Monitor))}."
            )
        if self.direct and self.latent_dim < 3:
            raise ValueError(
                f"Config.latent_dim must be at least 3 with discriminants, but is {self.latent_dim}: "
                "half of the embedding is theirs, and one coordinate is constant."
            )

    @classmethod
    def scimilarity(cls, **overrides) -> "Config":
        """SCimilarity's own numerics and defaults (scimilarity 0.4.1), to reproduce or to continue it.

        It mines on squared distances but its loss is of plain ones, mines each pair in one order,
        penalises the bottleneck, counts an empty batch as one triplet of loss `margin`, and divides
        silhouettes by count - 1. Its networks are larger and read genes, its learning rate is 5e-3, its
        triplet weight 0.001, and it trains for 500 epochs of 100 batches of 1000 cells.
        """
        reference = PUBLISHED | {
            "steps_per_epoch": 100,
            "batch_size": 1000,
            "metric": "euclidean",
            "mining_metric": "sqeuclidean",
            "both_orders": False,
            "triplet_loss_weight": 0.001,
            "empty_triplet_loss": "margin",
            "l1_layer": "bottleneck",
            "silhouette_divisor": "count-1",
            "max_epochs": 500,
        }
        return cls(**(reference | overrides))

    def for_cells(self, number: int, devices: int = 1) -> "Config":
        """The same for so many training cells: batches no larger than these, those of an epoch counted.

        Raises:
          ValueError: when there are too few cells for any batch.
        """
        batch_size = self.batch_size
        if batch_size > number:
            unit = math.lcm(devices, self.cells_per_class if self.sampling == "per_class" else 1)
            batch_size = number // unit * unit
            if not batch_size:
                raise ValueError(
                    f"a batch is a multiple of {unit} cells here, but there are only {number} to "
                    "train on."
                )
        steps = self.steps_per_epoch or max(1, round(number / batch_size))
        return dataclasses.replace(self, batch_size=batch_size, steps_per_epoch=steps)

    @property
    def direct(self) -> bool:
        """Whether what the encoder reads is part of the embedding as it is."""
        return self.discriminants and self.input_components > 0

    @property
    def input_width(self) -> int:
        """Outputs of the layer that the encoder reads; 0: it reads the genes."""
        return self.latent_dim // 2 if self.direct else self.input_components

    @property
    def input_gain(self) -> float:
        """What the hidden layers read these times: discriminants have a mean square norm of 1."""
        return self.input_width**0.5 if self.direct else 1.0

    @property
    def sizes(self) -> dict:
        """The sizes of the networks."""
        return {
            name: getattr(self, name)
            for name in ("hidden_dim", "latent_dim", "input_components", "discriminants")
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of weights: the layers of both networks."""
        hidden = [f"hidden_{i}" for i in range(len(self.hidden_dim))]
        layers = {"encoder": [*hidden, "latent"], "decoder": [*hidden, "output"]}
        return tuple(f"{part}/{layer}" for part in layers for layer in layers[part])

    @property
    def frozen_groups(self) -> tuple[str, ...]:
        """The groups that `freeze` names.

        Raises:
          ValueError: when a pattern names no group, or all groups are frozen.
        """
        frozen = set()
        for pattern in self.freeze:
            named = {
                group
                for group in self.groups
                if fnmatch.fnmatchcase(group, pattern) or group.startswith(f"{pattern}/")
            }
            if not named:
                raise ValueError(
                    f"Config.freeze has {pattern!r}, which names no group; the groups are: "
                    f"{', '.join(self.groups)}."
                )
            frozen |= named
        if len(frozen) == len(self.groups):
            raise ValueError(f"Config.freeze is {self.freeze}: nothing is left to train.")
        return tuple(group for group in self.groups if group in frozen)

    def to_dict(self) -> dict:
        """The fields as JSON types."""
        fields = dataclasses.asdict(self)
        return fields | {name: list(fields[name]) for name in ("hidden_dim", "freeze")}

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        """The inverse of `to_dict`.

        Raises:
          ValueError: for a field that this version does not know.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"Config does not know {', '.join(unknown)}: written by a newer jaxmetric?"
            )
        return cls(**{"discriminants": False} | fields)  # of a record from before there were any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """Which cells are kept; as they are, all.

    Attributes:
      min_counts: least counts of a cell.
      min_genes: least genes of a cell with a value.
      max_mito: largest share of a cell's counts in mitochondrial genes ("MT-...", "mt-...").
      exclude_studies: studies to leave out.
      exclude_samples: samples, named in the column `sample_key`, to leave out.
      sample_key: column of obs with the sample.
    """

    min_counts: int = 0
    min_genes: int = 0
    max_mito: float = 1.0
    exclude_studies: tuple[str, ...] = ()
    exclude_samples: tuple[str, ...] = ()
    sample_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("exclude_studies", "exclude_samples"):
            names = getattr(self, name)
            object.__setattr__(self, name, (names,) if isinstance(names, str) else tuple(names))
        if self.exclude_samples and self.sample_key is None:
            raise ValueError(
                "exclude_samples needs sample_key= / --sample-key, the column of obs with the sample."
            )
        if not 0 <= self.max_mito <= 1:
            raise ValueError(f"max_mito must be a share from 0 to 1, but is {self.max_mito}.")
        if self.min_counts < 0 or self.min_genes < 0:
            raise ValueError(
                f"min_counts and min_genes must be at least 0, but are {self.min_counts} and "
                f"{self.min_genes}."
            )


def _plain(value):
    """Numpy numbers, lists and arrays as plain Python ones, so that a config is always JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _whole(value: object, below: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def _real(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_pattern(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(pattern, str) for pattern in value)


def _is_sizes(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(_whole(v) and v >= 1 for v in value)


def _one_of(*allowed: object) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(map(str, allowed))}", allowed.__contains__


_COUNT = "a whole number of at least 1", lambda v: _whole(v) and v >= 1
_COUNT_OR_0 = "a whole number of at least 0", _whole
_COUNT_OR_NONE = _COUNT[0], lambda v: v is None or (_whole(v) and v >= 1)
_POSITIVE = "greater than 0", lambda v: _real(v) and v > 0
_POSITIVE_OR_NONE = _POSITIVE[0], lambda v: v is None or (_real(v) and v > 0)
_AT_LEAST_0 = "at least 0", lambda v: _real(v) and v >= 0
_DROPPED = "at least 0 and less than 1", lambda v: _real(v) and 0 <= v < 1
_SHARE = "from 0 to 1", lambda v: _real(v) and 0 <= v <= 1
_SWITCH = "True or False", lambda v: isinstance(v, bool)

_ALLOWED: dict[str, tuple[str, Callable[[Any], Any]]] = {  # of each field: in words, and a test
    "hidden_dim": ("one or more whole numbers of at least 1", _is_sizes),
    "latent_dim": _COUNT,
    "input_components": _COUNT_OR_0,
    "discriminants": _SWITCH,
    "dropout": _DROPPED,
    "input_dropout": _DROPPED,
    "margin": _POSITIVE,
    "negative_selection": _one_of(*typing.get_args(Selection)),
    "metric": _one_of(*typing.get_args(Metric)),
    "mining_metric": _one_of(*typing.get_args(Metric), None),
    "both_orders": _SWITCH,
    "sample_across_studies": _SWITCH,
    "perturb_labels_fraction": _SHARE,
    "singleton_labels": _one_of("drop", "coarsen"),
    "triplet_loss_weight": _SHARE,
    "empty_triplet_loss": _one_of("zero", "margin"),
    "l1": _AT_LEAST_0,
    "l1_layer": _one_of("first", "bottleneck"),
    "silhouette_divisor": _one_of(*typing.get_args(Divisor)),
    "learning_rate": _POSITIVE,
    "weight_decay": _AT_LEAST_0,
    "clip_norm": _POSITIVE_OR_NONE,
    "warmup_steps": _COUNT_OR_0,
    "monitor": _one_of(*typing.get_args(Monitor), None),
    "patience": _COUNT_OR_NONE,
    "max_epochs": _COUNT,
    "steps_per_epoch": _COUNT_OR_0,
    "batch_size": _COUNT,
    "sampling": _one_of(*typing.get_args(Sampling)),
    "cells_per_class": _COUNT,
    "block_size": _COUNT,
    "shuffle_steps": _COUNT,
    "freeze": ("names or patterns of groups", _is_pattern),
    "compute_dtype": _one_of(*typing.get_args(ComputeDtype)),
    "seed": ("a whole number from 0 to 2**32 - 1", lambda v: _whole(v, 2**32)),
}
