"""`MetricLearning`: a trained model as a record, and what users do with it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.config import Config, Values
from jaxmetric.evaluation.embeddings import Embedding, model_embedding
from jaxmetric.evaluation.evaluate import evaluate
from jaxmetric.metric.neighbors import nearest_neighbors
from jaxmetric.model import forward
from jaxmetric.model.annotate import (
    Reference,
    Search,
    add_to_obs,
    annotate,
    cell_names,
    have_trained_label,
    reference_of,
)
from jaxmetric.model.directory import metadata_of, save_model
from jaxmetric.networks.autoencoder import Autoencoder, autoencoder
from jaxmetric.scimilarity.directory import SCimilarityModel, export_model


@dataclasses.dataclass(frozen=True)
class MetricLearning:
    """A trained model: its config, genes and labels, and the variables of its networks.

    Attributes:
      config: the hyperparameters it was trained with.
      genes: the genes it reads, in order.
      labels: the labels it was trained on.
      variables: `params` and `batch_stats` of the networks.
      label_ids: ontology ids of the labels, None for a label that is no term (of an imported model);
        None for plain class labels.
      ontology_version: release and relations of the ontology; None for plain class labels.
      trained_on: a record of the training: counts of cells used and dropped, studies, kind of values.
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
    def network(self) -> Autoencoder:
        """The networks that `variables` belong to."""
        return autoencoder(self.config, len(self.genes))

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
        """Embeds every cell of the source.

        Genes are aligned by name to the model's; missing genes count as zero.

        Args:
          source: as in `read_cells`, or `Cells`.
          layer: as in `read_cells`.
          values: as in `read_cells`.
          gene_key: as in `read_cells`.
          min_gene_overlap: least share of the model's genes that the source must have.
          progress: show a progress bar, on a terminal.

        Returns:
          Embeddings in the order of the cells: float32, rows of unit length.

        Raises:
          ValueError: for data that cannot be read, or with too few of the model's genes.
        """
        return forward.over_source(
            self.network,
            self.variables,
            self.genes,
            source,
            layer=layer,
            values=values,
            gene_key=gene_key,
            min_gene_overlap=min_gene_overlap,
            progress=progress,
        )

    def __repr__(self) -> str:
        genes, latent = len(self.genes), self.config.latent_dim
        return f"MetricLearning({genes} genes -> {latent} dimensions, {len(self.labels)} labels)"

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
        return np.asarray(self.network.apply(self.variables, jnp.asarray(z), method="reconstruct"))

    def evaluate(
        self,
        query: Cells,
        reference: Cells | None = None,
        *,
        k: int = 15,
        all_labels: bool = False,
        baselines: bool = True,
        svd: bool = True,
        embeddings: Mapping[str, tuple] | None = None,
        page: str | Path | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """The report on the embedding of labelled query cells, best of studies not trained on.

        Args:
          query: the cells to score, from `read_cells`; held in memory.
          reference: labelled cells to transfer labels from; held in memory.
          k: neighbours that vote.
          all_labels: use reference cells of every label, not only of those that the model was trained
            on.
          baselines: also score, all fitted on the reference, a truncated SVD of 50 dimensions, its linear
            discriminants, and a logistic regression of genes, which predicts labels without an
            embedding.
          svd: what `baselines` was called when the SVD was the only one; False leaves all of them out.
          embeddings: other embeddings to score, by name: (query cells, d) and (reference cells, d).
          page: also write the report with pictures, one HTML file (extra `eval`).
          progress: show progress bars.

        Returns:
          Values that `json.dumps` takes; a score that is not defined is None. Without a reference:
          `num_cells`, `silhouette` (ontology-aware, cosine distance) and, for a model with decoder,
          `mse` and `nmse` (mse over the mean square of the expression). With a reference also

            accuracy, macro_f1, ...   of transferred labels: see `label_transfer.confusion_scores`
            precision_at_1, ...       see `retrieval_scores`, strict and `ontology_...`
            study_mixing              see `mixing.lisi` (extra `eval`)
            neighborhood_agreement    see `agreement.neighborhood_agreement`
            hidden_gene_agreement     see `agreement.hidden_gene_agreement`
            intervals                 95 % interval of each mean over cells: see `bootstrap.intervals`
            per_type                  see `label_transfer.per_type`
            confusion                 counts: rows are true labels, columns predicted ones
            notes                     why a score is None
            beside                    the same scores of the baselines ("SVD-50", "LDA-50", "logistic
                                      regression") and of each of `embeddings`

          Transferred labels are scored over the `num_scored` query cells whose label is also a label of
          one of the `num_reference` labelled reference cells.

        Raises:
          ValueError: when no query cell can be scored, k exceeds the labelled reference cells, or an
            embedding does not fit.
          ImportError: for a page, when the packages that draw it are not installed.
        """
        return evaluate(
            functools.partial(self._embedding, progress=progress),
            query,
            reference,
            genes=self.genes,
            is_reference=None if all_labels else self._have_trained_label,
            k=k,
            baselines=baselines and svd,
            embeddings=embeddings or {},
            page=page,
            history=self.history,
        )

    def annotate(
        self,
        source: str | Path | anndata.AnnData | Cells,
        reference: Cells,
        *,
        k: int = 15,
        all_labels: bool = False,
        quantile: float = 0.95,
        neighbors: Search = nearest_neighbors,
        layer: str | None = None,
        values: Values | None = None,
        gene_key: str | None = None,
        min_gene_overlap: float = 0.2,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Labels cells by their nearest reference cells, and flags cells unlike all of these.

        Args:
          source: the cells to annotate; an AnnData gets the columns in its `obs` too.
          reference: labelled cells, best of several studies, from `read_cells`.
          k: neighbours that vote.
          all_labels: use reference cells of every label, not only of those that the model was trained
            on.
          quantile: a cell is out of distribution where it is farther from the reference than this
            share of the reference's own cells are from other studies: see
            `annotate.distance_threshold`.
          neighbors: an index to search instead: called once with the embeddings of source and
            reference and k, it returns indices and Euclidean distances, both (cells, k). The
            threshold's distances are always exact.
          layer: the source's matrix, as in `read_cells`.
          values: the kind of its values, as in `read_cells`.
          gene_key: column of `var` with the gene names, as in `read_cells`.
          min_gene_overlap: least share of the model's genes that must be there.
          progress: show progress bars.

        Returns:
          The columns of `annotate.annotate`, a row per cell, by cell name; of `Cells` by number.

        Raises:
          ValueError: for data that cannot be read, or a reference of too few labelled cells.
        """
        names = cell_names(source, layer)
        embedded_reference = self.embedded_reference(
            reference, all_labels, k=k, quantile=quantile, progress=progress
        )
        z = self.embed(
            source,
            layer=layer,
            values=values,
            gene_key=gene_key,
            min_gene_overlap=min_gene_overlap,
            progress=progress,
        )
        columns = annotate(z, embedded_reference, k=k, neighbors=neighbors).set_axis(names)
        return add_to_obs(source, columns)

    def embedded_reference(
        self, cells: Cells, all_labels: bool, *, k: int, quantile: float, progress: bool
    ) -> Reference:
        """Reference cells embedded, with their threshold, for `annotate` of many queries.

        Args:
          cells: labelled cells.
          all_labels: use cells of labels that the model was not trained on, too.
          k: neighbours that vote.
          quantile: share of the reference's cells that have a cell of another study within the threshold.
          progress: show a progress bar, on a terminal.

        Returns:
          What `annotate` takes in place of labelled cells.
        """
        cells = require_cells(cells, "reference")
        if not all_labels:
            cells = cells.select(self._have_trained_label(cells))
        embed = functools.partial(self.embed, progress=progress)
        return reference_of(cells, embed, k=k, quantile=quantile)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes the model directory whole or not at all.

        Args:
          directory: where to.
          overwrite: replace a model directory that is there.

        Raises:
          ValueError: when the directory exists and may not be replaced.
        """
        save_model(Path(directory), self.variables, metadata_of(self), overwrite)

    def export_scimilarity(self, directory: str | Path) -> None:
        """Writes, whole or not at all, a directory that SCimilarity's `CellEmbedding` opens.

        Raises:
          ValueError: when the directory exists.
        """
        steps = self.trained_on.get("steps", 0)
        exported = SCimilarityModel(self.config, self.genes, self.labels, self.variables, steps)
        export_model(Path(directory), exported)

    def _embedding(self, query: Cells, reference: Cells | None, progress: bool) -> Embedding:
        """The embedding that a report is about; see `model_embedding`."""
        over = functools.partial(self._over, progress=progress)
        reconstruct = over(forward.embed_and_reconstruct) if self.has_decoder else None
        return model_embedding(over(forward.embed), reconstruct, query, reference)

    def _over(self, function: Callable, progress: bool) -> Callable[[Cells], Any]:
        """A function of `forward` with this model's networks, to be called with cells."""
        networks = self.network, self.variables
        return functools.partial(forward.over_cells, function, *networks, progress=progress)

    def _have_trained_label(self, cells: Cells) -> Bool[np.ndarray, " cells"]:
        """Which cells have a label that the model was trained on; see `have_trained_label`."""
        coarsened = self.config.singleton_labels == "coarsen"
        return have_trained_label(cells, self.labels, or_below=coarsened)
