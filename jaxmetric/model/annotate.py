"""Labels of new cells from their nearest reference cells, and flags of new cells unlike all of these."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.source import opened, paths_in, some
from jaxmetric.labels.ontology import CellOntology
from jaxmetric.metric.neighbors import Neighbors, label_votes, nearest_neighbors

log = logging.getLogger("jaxmetric")
ROWS = 2**14  # cells whose votes are counted at a time
AGREED = 0.8  # share of the votes that the coarse label has, at least
Search = Callable[
    [Float[np.ndarray, "q d"], Float[np.ndarray, "r d"], int],
    tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]],
]


class Reference(NamedTuple):
    """Labelled cells, embedded.

    Attributes:
      z: their embeddings.
      labels: label of each cell, as an index into `label_names`.
      label_names: names of the labels.
      threshold: the distance beyond which a cell is out of distribution.
      ontology: that the labels are terms of; None: they are of none.
    """

    z: Float[np.ndarray, "r d"]
    labels: Int[np.ndarray, " r"]
    label_names: tuple[str, ...]
    threshold: float
    ontology: CellOntology | None = None


def have_trained_label(
    cells: Cells, labels: Sequence[str], *, or_below: bool
) -> Bool[np.ndarray, " cells"]:
    """Which reference cells have a label that the model was trained on.

    Args:
      cells: the reference cells.
      labels: the labels that the model was trained on.
      or_below: descendants of these labels count too.

    Raises:
      ValueError: when no cell has such a label.
    """
    known = cells.of_labels(labels, or_below=or_below)
    if not known.any():
        raise ValueError(
            f"none of the {len(cells)} reference cells has a label that the model was trained on "
            f"({some(labels, 5)}): name their column with label_key= / --label-key (or "
            "--reference-label-key), or use all labels with all_labels=True / --all-labels."
        )
    log.info(
        "%d of %d reference cells have a label that the model was trained on",
        known.sum(),
        len(cells),
    )
    return known


def reference_of(
    cells: Cells,
    embed: Callable[[Cells], Float[np.ndarray, "r d"]],
    *,
    k: int,
    quantile: float,
) -> Reference:
    """The labelled cells, embedded, with the threshold of `distance_threshold`.

    Raises:
      ValueError: when fewer than k cells have a label (or fewer than two, which have no distances), k
        is not positive, or the quantile is not in (0, 1].
    """
    if k < 1 or not 0 < quantile <= 1:
        raise ValueError(f"k must be positive and quantile in (0, 1], but are {k} and {quantile}.")
    labelled = require_cells(cells, "reference").labels >= 0
    least = max(k, 2)
    if labelled.sum() < least:
        raise ValueError(
            f"at least {least} reference cells with a label are needed for k={k}, but {labelled.sum()} "
            f"of {len(cells)} have one: name the column of labels with label_key= / --label-key, use "
            "labels that the model was not trained on with --all-labels, or lower k= / --k."
        )
    if not labelled.all():
        log.info("%d reference cells without label are left out", (~labelled).sum())
        cells = cells.select(labelled)
    cells = cells.with_labels([cells.label_names[i] for i in np.unique(cells.labels)])
    z = embed(cells)
    threshold = distance_threshold(z, cells.labels, cells.studies, quantile)
    return Reference(z, cells.labels, cells.label_names, threshold, cells.ontology)


def distance_threshold(
    z: Float[np.ndarray, "r d"],
    labels: Int[np.ndarray, " r"],
    studies: Int[np.ndarray, " r"],
    quantile: float,
) -> float:
    """How far from the reference a cell of a known label and an unseen study can be expected to lie.

    The quantile of the Euclidean distances from each reference cell to the nearest reference cell of
    *another* study, as if each study were new to the others: exact, every pair walked in chunks. Cells
    whose label occurs in one study only are left out: they have no counterpart elsewhere. Where this
    leaves none (all are of one study, say), it is the quantile of the distances to the nearest other
    cell, with a warning: cells of one study lie closer together than those of two.

    About 1 - quantile of a new study's cells of known labels are flagged by mistake where that study is
    to the reference's as these are to each other. Studies that the model was trained on lie closer
    together than to one that it never saw, of which more are flagged.
    """
    where = np.zeros((labels.max() + 1, studies.max() + 1), bool)
    where[labels, studies] = True
    calibrate, groups = where.sum(1)[labels] > 1, studies
    if not calibrate.any():
        log.warning(
            "no label occurs in two studies of the reference, so the threshold comes from the distances "
            "within studies: it is too strict for a new study, and too many of its cells are flagged."
        )
        calibrate, groups = np.ones(len(z), bool), np.arange(len(z))
    nearest = nearest_neighbors(z[calibrate], z, 1, groups=(groups[calibrate], groups))
    threshold = float(np.quantile(nearest.distances, quantile))
    log.info(
        "out of distribution: farther than %.4g from all of the reference, the %g quantile of %d cells",
        threshold,
        quantile,
        len(nearest.distances),
    )
    return threshold


def annotate(
    z: Float[np.ndarray, "q d"],
    reference: Reference,
    *,
    k: int,
    neighbors: Search = nearest_neighbors,
) -> pd.DataFrame:
    """Annotations of embedded cells, a row for each.

    Returns:
      `jaxmetric_label`, the label with most votes of the k nearest reference cells, a vote being
      1 / distance (as in `neighbors.label_votes`); `jaxmetric_confidence`, its share of the votes, in
      [0, 1]; `jaxmetric_label_coarse`, the most specific term of the ontology that the label is, or is
      a descendant of, and that has a share of AGREED of the votes, its descendants' among them;
      `jaxmetric_confidence_coarse`, that share; `jaxmetric_distance`, the Euclidean distance to the
      nearest reference cell; `jaxmetric_out_of_distribution`, whether that is more than the threshold.
      Without an ontology the coarse label is the label.

    Raises:
      ValueError: when `neighbors` gives anything but (q, k) indices of reference cells, and distances.
    """
    nearest = _checked(neighbors(z, reference.z, k), len(z), len(reference.z), k)
    label, coarse = np.zeros((2, len(z)), np.int32)
    confidence, coarse_confidence = np.zeros((2, len(z)), np.float32)
    terms, covers = lineages(reference)
    for first in range(0, len(z), ROWS):
        rows = slice(first, first + ROWS)
        block = Neighbors(nearest.indices[rows], nearest.distances[rows])
        votes = label_votes(block, reference.labels, len(reference.label_names))
        shares = votes / votes.sum(1, keepdims=True)
        label[rows], confidence[rows] = shares.argmax(1), shares.max(1)
        coarse[rows], coarse_confidence[rows] = agreed(shares, label[rows], covers)
    distance = nearest.distances.min(1).astype(np.float32)
    out = distance > reference.threshold
    log.info("%d of %d cells are out of distribution", out.sum(), len(z))
    return pd.DataFrame(
        {
            "jaxmetric_label": pd.Categorical.from_codes(label, list(reference.label_names)),
            "jaxmetric_confidence": confidence,
            "jaxmetric_label_coarse": pd.Categorical.from_codes(
                coarse, list(terms)
            ).remove_unused_categories(),
            "jaxmetric_confidence_coarse": coarse_confidence,
            "jaxmetric_distance": distance,
            "jaxmetric_out_of_distribution": out,
        }
    )


def lineages(reference: Reference) -> tuple[tuple[str, ...], Bool[np.ndarray, "t k"]]:
    """The terms that a coarse label may be, most specific first, and which labels each of them covers."""
    if reference.ontology is None:
        return reference.label_names, np.eye(len(reference.label_names), dtype=bool)
    return reference.ontology.lineages(reference.label_names)


def agreed(
    shares: Float[np.ndarray, "q k"],
    label: Int[np.ndarray, " q"],
    covers: Bool[np.ndarray, "t k"],
) -> tuple[Int[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """The first term that covers the cell's label and has AGREED of the votes, and its share of them.

    Where none has, it is the first that has the most.
    """
    mass = np.where(covers[:, label].T, shares @ covers.T, -1.0)
    enough = mass >= np.minimum(AGREED, mass.max(1, keepdims=True)) - 1e-6  # of rounding
    term = enough.argmax(1)
    return term, np.minimum(mass[np.arange(len(term)), term], 1.0)


def _checked(searched: tuple, num_query: int, num_reference: int, k: int) -> Neighbors:
    """The result of a search as arrays, where it is of the right shape and range."""
    indices, distances = nearest = Neighbors(*map(np.asarray, searched))
    if any(part.shape != (num_query, k) for part in nearest) or not (
        np.issubdtype(indices.dtype, np.integer)
        and ((indices >= 0) & (indices < num_reference)).all()
        and ((distances >= 0) & np.isfinite(distances)).all()
    ):
        raise ValueError(
            f"neighbors must give whole-numbered indices from 0 to {num_reference - 1} and finite "
            f"distances >= 0, both of shape {(num_query, k)}, but gave {indices.dtype} indices of shape "
            f"{indices.shape} and distances of shape {distances.shape}, or some of them are out of range."
        )
    return nearest


def add_to_obs(source: object, columns: pd.DataFrame) -> pd.DataFrame:
    """The columns, also set in the `obs` of a source that is an AnnData."""
    if isinstance(source, anndata.AnnData):
        for name in columns:
            source.obs[name] = columns[name]
    return columns


def cell_names(source: str | Path | anndata.AnnData | Cells, layer: str | None) -> pd.Index:
    """The names of the cells in `obs`; of `Cells`, which have none, their numbers."""
    if isinstance(source, Cells):
        return pd.RangeIndex(len(source))
    if isinstance(source, anndata.AnnData):
        return source.obs_names
    names = []
    for path in paths_in(Path(source)):
        with opened(path, str(path), layer) as cells:
            names.append(cells.obs.index)
    return names[0].append(names[1:])
