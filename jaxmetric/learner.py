"""`MetricLearning`: a trained model, with all that is needed to use it."""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxmetric.batches import Batch, in_order
from jaxmetric.checkpoint import load_model, read_meta, save_model, whole_directory
from jaxmetric.config import Config
from jaxmetric.data import Cells, Values, read_cells, require_cells
from jaxmetric.evaluation import score_embedding, svd_embedding
from jaxmetric.expression import expression
from jaxmetric.model import Autoencoder
from jaxmetric.ontology import CellOntology
from jaxmetric.scimilarity import SCimilarityModel, read_model, write_model
from jaxmetric.sharding import cell_mesh, put_batch, replicated
from jaxmetric.train import autoencoder

log = logging.getLogger("jaxmetric")
BATCH = 1000  # cells embedded at a time, over all devices


@dataclasses.dataclass(frozen=True)
class MetricLearning:
    """A model: its networks' variables, and what its inputs and labels were.

    Attributes:
      config: the hyperparameters it was trained with.
      genes: the genes it reads, in order.
      labels: the labels it was trained on.
      variables: `params` and `batch_stats` of the networks.
      label_ids: ontology ids of the labels, None for one that is no term (of an imported model);
        None for plain class labels.
      ontology_version: release and relations of the ontology; None for plain class labels.
      trained_on: counts of cells read, dropped and used, and what their values were.
      history: one row of metrics per epoch.
    """

    config: Config
    genes: tuple[str, ...]
    labels: tuple[str, ...]
    variables: dict
    label_ids: tuple[str | None, ...] | None = None
    ontology_version: str | None = None
    trained_on: dict = dataclasses.field(default_factory=dict)
    history: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    @property
    def has_decoder(self) -> bool:
        """Whether the model can reconstruct; an imported one can lack its decoder."""
        return "decoder" in self.variables["params"]

    def embed(
        self,
        source: str | Path | anndata.AnnData | Cells | Sequence,
        *,
        layer: str | None = None,
        values: Values | None = None,
        gene_key: str | None = None,
        min_gene_overlap: float = 0.2,
        progress: bool = False,
    ) -> Float[np.ndarray, "cells latent"]:
        """Embeds every cell of the source, in its order: float32, rows of unit length.

        Genes are aligned by name to the model's; missing ones count as zero. Arguments as in
        `read_cells`.

        Raises:
          ValueError: for data that cannot be read, or with too few of the model's genes.
        """
        cells = read_cells(
            source,
            layer=layer,
            values=values,
            gene_key=gene_key,
            genes=self.genes,
            min_gene_overlap=min_gene_overlap,
        )
        return self._map(_embed, cells, "embedding", progress)

    def reconstruct(self, z: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells genes"]:
        """The log-normalised expression that the decoder gives for embeddings.

        Raises:
          ValueError: when the model has no decoder.
        """
        if not self.has_decoder:
            raise ValueError(
                "this model has no decoder, so it can embed but not reconstruct: the SCimilarity "
                "directory it was imported from held no decoder.ckpt."
            )
        network = autoencoder(self.config, len(self.genes))
        return np.asarray(network.apply(self.variables, jnp.asarray(z), method="reconstruct"))

    def evaluate(
        self,
        query: Cells,
        reference: Cells | None = None,
        *,
        k: int = 15,
        svd: bool = False,
        progress: bool = False,
    ) -> dict[str, float]:
        """Scores the embedding of labelled query cells, best on studies not trained on.

        Args:
          query: the cells to score, from `read_cells`.
          reference: labelled cells to transfer labels from.
          k: neighbours that vote.
          svd: also score a truncated SVD of 50 dimensions, fitted on the reference: `svd_...`.
          progress: show progress bars.

        Returns:
          `mse` and `nmse` (mse over the mean square of the expression) of the reconstruction, where
          the model has a decoder, and the scores of `score_embedding`.
        """
        query = require_cells(query, "query").with_genes(self.genes)
        scores = {}
        if self.has_decoder:
            z, error, power = self._map(_reconstruct, query, "reconstructing", progress)
            scores["mse"] = float(error.mean(dtype=np.float64) / len(self.genes))
            scores["nmse"] = float(error.sum(dtype=np.float64) / power.sum(dtype=np.float64))
        else:
            z = self.embed(query, progress=progress)
        if reference is None:
            return scores | score_embedding(z, query)
        reference = require_cells(reference, "reference").with_genes(self.genes)
        z_reference = self.embed(reference, progress=progress)
        scores |= score_embedding(z, query, z_reference, reference, k=k)
        if svd:
            z, z_reference = svd_embedding(query, reference)
            baseline = score_embedding(z, query, z_reference, reference, k=k)
            scores |= {
                f"svd_{name}": baseline[name] for name in ("accuracy", "macro_f1", "silhouette")
            }
        return scores

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes the model directory, whole or not at all; an existing one only with `overwrite`."""
        meta = {
            "config": self.config.to_dict(),
            "genes": list(self.genes),
            "labels": list(self.labels),
            "label_ids": self.label_ids and list(self.label_ids),
            "ontology_version": self.ontology_version,
            "networks": sorted(self.variables["params"]),
            "trained_on": self.trained_on,
            "history": self.history.astype(object)
            .where(self.history.notna(), None)
            .to_dict("records"),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("jaxmetric", "jax", "flax", "optax", "orbax-checkpoint")
            },
        }
        save_model(Path(directory), self.variables, meta, overwrite)

    def export_scimilarity(self, directory: str | Path) -> None:
        """Writes a directory that SCimilarity opens, whole or not at all: `CellEmbedding(directory)`.

        Raises:
          ValueError: when the directory exists.
        """
        directory = Path(directory)
        if directory.exists():
            raise ValueError(f"{directory} exists: choose another directory.")
        if len(self.config.hidden_dim) > 9:
            log.warning(
                "SCimilarity sorts layers as strings, so it cannot open a model of more than 9 hidden "
                "layers; this one has %d. load_scimilarity can.",
                len(self.config.hidden_dim),
            )
        steps = self.trained_on.get("steps", 0)
        with whole_directory(directory) as building:
            write_model(
                building,
                SCimilarityModel(self.config, self.genes, self.labels, self.variables, steps),
            )

    def _map(self, function, cells: Cells, what: str, progress: bool):
        """The arrays that the function gives for every cell, in the order of the cells."""
        mesh = cell_mesh(jax.local_devices())
        size = -(-min(BATCH, len(cells)) // mesh.size) * mesh.size
        network, counts = autoencoder(self.config, len(self.genes)), cells.values == "counts"
        variables = jax.device_put(self.variables, replicated(mesh))
        batches = tqdm(
            in_order(cells, size),
            total=-(-len(cells) // size),
            desc=what,
            unit="batch",
            disable=not progress or None,
        )
        found = [
            jax.device_get(function(network, variables, put_batch(batch, mesh), counts))
            for batch in batches
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(cells)], *found)


def load(directory: str | Path) -> MetricLearning:
    """Loads what `MetricLearning.save` or `fit` wrote: a model directory, or a run with one inside.

    Raises:
      ValueError: when a file is missing, truncated, changed or foreign; the message names it.
    """
    variables, meta = load_model(_model_directory(Path(directory)), _shapes)
    return MetricLearning(
        config=Config.from_dict(meta["config"]),
        genes=tuple(meta["genes"]),
        labels=tuple(meta["labels"]),
        variables=variables,
        label_ids=meta["label_ids"] and tuple(meta["label_ids"]),
        ontology_version=meta["ontology_version"],
        trained_on=meta["trained_on"],
        history=pd.DataFrame(meta["history"]),
    )


def load_config(directory: str | Path) -> Config:
    """The config of a model directory, without its arrays."""
    return Config.from_dict(read_meta(_model_directory(Path(directory)))["config"])


def load_scimilarity(directory: str | Path) -> MetricLearning:
    """Loads a SCimilarity model directory, without torch and without executing its pickles.

    `encoder.ckpt`, `layer_sizes.json`, `gene_order.tsv` and `label_ints.csv` must be there;
    `decoder.ckpt` (for reconstruction) and `hyperparameters.json` (for training on) may. The config is
    `Config.scimilarity()` with the directory's hyperparameters. The model reads log1p of counts per
    10,000; raw counts are normalised for it.

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


@functools.partial(jax.jit, static_argnames=("network", "counts"))
def _embed(network: Autoencoder, variables: dict, batch: Batch, counts: bool):
    x = expression(batch.columns, batch.values, network.num_genes, counts)
    return network.apply(variables, x, method="embed")


@functools.partial(jax.jit, static_argnames=("network", "counts"))
def _reconstruct(network: Autoencoder, variables: dict, batch: Batch, counts: bool):
    """Embedding, squared error and squared expression of each cell, these summed over genes."""
    x = expression(batch.columns, batch.values, network.num_genes, counts)
    z, y = network.apply(variables, x)
    return z, ((x - y) ** 2).sum(1), (x**2).sum(1)
