"""`MetricLearning`: a trained model, with all that is needed to use it."""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.read import read_cells
from jaxmetric.cells.source import paths_in, some
from jaxmetric.cells.store import about
from jaxmetric.config import Config, Values
from jaxmetric.evaluation.baselines import svd_baseline
from jaxmetric.evaluation.embeddings import (
    MODEL,
    SVD,
    Embedding,
    given_embeddings,
    in_memory,
    seen_genes,
)
from jaxmetric.evaluation.page import page_of
from jaxmetric.evaluation.plots import require_pictures
from jaxmetric.evaluation.report import logged, report_of, scores_alone
from jaxmetric.files import whole_directory, write_text
from jaxmetric.metric.neighbors import nearest_neighbors
from jaxmetric.model import forward
from jaxmetric.model.annotate import Reference, Search, annotate, cell_names, reference_of
from jaxmetric.model.directory import save_model
from jaxmetric.networks.autoencoder import Autoencoder, autoencoder
from jaxmetric.scimilarity.directory import SCimilarityModel, write_model

log = logging.getLogger("jaxmetric")


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
    def network(self) -> Autoencoder:
        """The networks, whose variables are the model's."""
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
        """Embeds every cell of the source, in its order: float32, rows of unit length.

        Genes are aligned by name to the model's; missing ones count as zero. Arguments as in
        `read_cells`.

        Raises:
          ValueError: for data that cannot be read, or with too few of the model's genes.
        """
        how = {
            "layer": layer,
            "values": values,
            "gene_key": gene_key,
            "min_gene_overlap": min_gene_overlap,
        }
        if isinstance(source, str | Path) and about(Path(source)) is None:
            what = self.network, self.variables, self.genes
            files = (
                forward.over_file(*what, file, progress=progress, **how)
                for file in paths_in(Path(source))
            )
            return np.concatenate([z for pieces in files for z in pieces])
        cells = read_cells(source, genes=self.genes, ontology=None, **how)
        network, variables = self.network, self.variables
        return forward.over_cells(forward.embed, network, variables, cells, progress=progress)

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
        svd: bool = True,
        embeddings: Mapping[str, tuple] | None = None,
        page: str | Path | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """The report on the embedding of labelled query cells, best of studies not trained on.

        Args:
          query: the cells to score, from `read_cells`.
          reference: labelled cells to transfer labels from; held in memory, as the query cells are.
          k: neighbours that vote.
          all_labels: use reference cells of every label, not only of those that the model was trained
            on.
          svd: also score a truncated SVD of 50 dimensions, fitted on the reference.
          embeddings: others to score, by name: (query cells, d) and (reference cells, d).
          page: also write the report with pictures, one HTML file (extra `eval`).
          progress: show progress bars.

        Returns:
          What `json.dumps` takes; a score that is not defined is None. Without a reference `num_cells`,
          `silhouette` (ontology-aware, cosine distance) and, of a model with decoder, `mse` and `nmse`
          (mse over the mean square of the expression). With one also

            accuracy, macro_f1, ...   of transferred labels: see `label_transfer.confusion_scores`
            precision_at_1, ...       see `retrieval_scores`, strict and `ontology_...`
            study_mixing              see `mixing.lisi` (extra `eval`)
            neighborhood_agreement    see `agreement.neighborhood_agreement`
            hidden_gene_agreement     see `agreement.hidden_gene_agreement`
            intervals                 95 % of each score that is over cells: see `bootstrap.intervals`
            per_type                  see `label_transfer.per_type`
            confusion                 counts: rows are true labels, columns predicted ones
            notes                     why a score is None
            beside                    the same of the SVD ("SVD-50") and each of `embeddings`

          Transferred labels are scored over the `num_scored` query cells whose label some of the
          `num_reference` labelled reference cells has.

        Raises:
          ValueError: when no query cell can be scored, k exceeds the labelled reference cells, or an
            embedding does not fit.
          ImportError: for a page, when what draws it is not installed.
        """
        query = read_cells(require_cells(query, "query"), genes=self.genes)
        if reference is None:
            if page is not None or embeddings:
                raise ValueError("a page, or other embeddings, need reference cells: reference=.")
            return scores_alone(self._embedding(query, None, progress), query)
        reference = read_cells(require_cells(reference, "reference"), genes=self.genes)
        given = given_embeddings(embeddings or {}, len(query), len(reference))
        if page is not None:
            require_pictures()
            if not Path(page).absolute().parent.is_dir():
                raise ValueError(f"no such folder: {Path(page).parent}, to write the page in.")
        if not len(query) or not len(reference):
            raise ValueError(
                f"there are {len(query)} query and {len(reference)} reference cells: neither may be none."
            )
        if not all_labels:
            known = self._known(reference)
            reference = reference.select(known)
            given = {
                name: one._replace(reference=one.reference[known]) for name, one in given.items()
            }
        query, reference = in_memory(query), in_memory(reference)
        values = logged(query), logged(reference)
        found = {MODEL: self._embedding(query, reference, progress)}
        if svd:
            found[SVD] = svd_baseline(query, reference, *values)
        found |= given
        report = report_of(found, *values, k=k)
        if page is not None:
            write_text(Path(page), page_of(report, found, query, reference, self.history))
        return report

    def _embedding(self, query: Cells, reference: Cells | None, progress: bool) -> Embedding:
        """What a report needs of this model; without a reference only what is of the query cells."""
        over = functools.partial(
            forward.over_cells, network=self.network, variables=self.variables, progress=progress
        )
        error = power = None
        if self.has_decoder:
            z, *sums = over(forward.embed_and_reconstruct, cells=query)
            error, power = (one.astype(np.float64) / len(self.genes) for one in sums)
        else:
            z = over(forward.embed, cells=query)
        if reference is None:
            return Embedding(z, z[:0], None, error, power)
        seen = query.with_genes(seen_genes(self.genes)).with_genes(self.genes)
        hidden, z_reference = over(forward.embed, cells=seen), over(forward.embed, cells=reference)
        return Embedding(z, z_reference, hidden, error, power)

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
        """Labels the cells of the source by their nearest reference cells, and flags those unlike any.

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
          layer: the source's matrix: this and the next three as in `read_cells`.
          values: what the matrix holds.
          gene_key: column of `var` with the gene names.
          min_gene_overlap: least share of the model's genes that must be there.
          progress: show progress bars.

        Returns:
          The columns of `annotate`, a row per cell, by the name of the cell; of `Cells` by number.

        Raises:
          ValueError: for data that cannot be read, or a reference of too few labelled cells.
        """
        names = cell_names(source, layer)
        embed = functools.partial(self.embed, progress=progress)
        known = self.embedded_reference(
            reference, all_labels, k=k, quantile=quantile, progress=progress
        )
        how = {"values": values, "gene_key": gene_key, "min_gene_overlap": min_gene_overlap}
        z = embed(source, layer=layer, **how)
        found = annotate(z, known, k=k, neighbors=neighbors).set_axis(names)
        if isinstance(source, anndata.AnnData):
            for name in found:
                source.obs[name] = found[name]
        return found

    def embedded_reference(
        self, cells: Cells, all_labels: bool, *, k: int, quantile: float, progress: bool
    ) -> Reference:
        """Reference cells embedded, with their threshold: see `annotate.reference_of`."""
        cells = require_cells(cells, "reference")
        if not all_labels:
            cells = cells.select(self._known(cells))
        embed = functools.partial(self.embed, progress=progress)
        return reference_of(cells, embed, k=k, quantile=quantile)

    def _known(self, cells: Cells) -> Bool[np.ndarray, " cells"]:
        """Which cells have a label that the model was trained on.

        Raises:
          ValueError: when none has.
        """
        known = cells.of_labels(self.labels, or_below=self.config.singleton_labels == "coarsen")
        if not known.any():
            raise ValueError(
                f"none of the {len(cells)} reference cells has a label that the model was trained on "
                f"({some(self.labels, 5)}): name their column with label_key= / --label-key (or "
                "--reference-label-key), or use all labels with all_labels=True / --all-labels."
            )
        log.info(
            "%d of %d reference cells have a label that the model was trained on",
            known.sum(),
            len(cells),
        )
        return known

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
