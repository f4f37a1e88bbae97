"""How good an embedding of query cells is, by itself and beside reference cells."""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from jaxtyping import Float

from jaxmetric import metrics
from jaxmetric.data import Cells


def score_embedding(
    z: Float[np.ndarray, "q d"],
    query: Cells,
    z_reference: Float[np.ndarray, "r d"] | None = None,
    reference: Cells | None = None,
    *,
    k: int = 15,
) -> dict[str, float]:
    """Scores of an embedding of labelled query cells.

    Returns:
      `silhouette`: ontology-aware silhouette width of the labelled query cells, cosine distance.
      With a reference also `accuracy` and `macro_f1` of labels transferred from the k nearest
      reference cells, weighted by 1 / distance, over the `num_scored` query cells whose label some
      reference cell has; macro-F1 is the mean over labels that are true or predicted.

    Raises:
      ValueError: when no query cell can be scored, or k exceeds the labelled reference cells.
    """
    names = sorted(set(query.label_names) | set(reference.label_names if reference else ()))
    truth = query.with_labels(names).labels
    descendants = query.ontology.descendants(names) if query.ontology else None
    scores = {
        "num_cells": len(query),
        "silhouette": metrics.ontology_silhouette(z, truth, descendants=descendants),
    }
    if reference is None or z_reference is None:
        return scores
    known = reference.with_labels(names).labels
    labelled = known >= 0
    scored = np.isin(truth, known[labelled])
    if not scored.any():
        raise ValueError(
            f"none of the {len(query)} query cells has a label that a reference cell has: the labels "
            f"are {sorted(_names(query))} and {sorted(_names(reference))}."
        )
    neighbors = metrics.nearest_neighbors(z[scored], z_reference[labelled], k)
    predicted = metrics.transfer_labels(neighbors, known[labelled], len(names))
    return scores | {
        "num_reference": int(labelled.sum()),
        "num_scored": int(scored.sum()),
        "accuracy": metrics.accuracy(truth[scored], predicted),
        "macro_f1": metrics.macro_f1(truth[scored], predicted),
    }


def score_table(scores: dict[str, float]) -> str:
    """The scores as text: one column for the model, one for the SVD where it was scored."""
    names = ("accuracy", "macro_f1", "silhouette", "nmse")
    lines = [f"{'':12}{'jaxmetric':>10}" + (f"{'SVD-50':>10}" if "svd_accuracy" in scores else "")]
    for name in names:
        if name in scores:
            both = [scores[key] for key in (name, f"svd_{name}") if key in scores]
            lines.append(f"{name:12}" + "".join(f"{value:10.3f}" for value in both))
    if "num_scored" in scores:
        lines.append(
            f"{scores['num_scored']} of {scores['num_cells']} query cells have a label among those of "
            f"the {scores['num_reference']} reference cells"
        )
    return "\n".join(lines)


def svd_embedding(
    query: Cells, reference: Cells, dim: int = 50
) -> tuple[Float[np.ndarray, "q dim"], Float[np.ndarray, "r dim"]]:
    """Truncated SVD of the reference cells' log-normalised expression: the baseline to beat.

    The query cells are projected on the right singular vectors of the reference. There are fewer
    dimensions where cells or genes are few.
    """
    x, y = log_normalized(query), log_normalized(reference)
    dim = min(dim, min(y.shape) - 1)
    start = np.full(min(y.shape), min(y.shape) ** -0.5, np.float32)
    _, _, components = scipy.sparse.linalg.svds(y, k=dim, v0=start)
    return np.asarray(x @ components.T), np.asarray(y @ components.T)


def log_normalized(cells: Cells) -> sp.csr_matrix:
    """The cells' log1p of counts per 10,000, as `expression.log_normalize` gives it on the device."""
    if cells.values == "lognorm":
        return cells.X
    total = np.asarray(cells.X.sum(1)).ravel()
    X = cells.X.copy()
    X.data = np.log1p(X.data * np.repeat(1e4 / np.where(total > 0, total, 1), np.diff(X.indptr)))
    return X.astype(np.float32)


def _names(cells: Cells) -> set[str]:
    return {cells.label_names[i] for i in np.unique(cells.labels) if i >= 0}
