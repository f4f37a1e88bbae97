"""Label transfer: the labels that nearest reference cells give to query cells, and how right they are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from jaxmetric.cells.cells import Cells
from jaxmetric.metric.neighbors import nearest_neighbors, transfer_labels
from jaxmetric.scores.ratio import ratio


class Labelled(NamedTuple):
    """Query and reference cells' labels, numbered alike.

    Attributes:
      names: the k labels that any of the cells has, sorted.
      query: label of each query cell; -1: none.
      reference: label of each reference cell; -1: none.
      descendants: descendants[i, j]: label j is a proper descendant of label i.
    """

    names: tuple[str, ...]
    query: Int[np.ndarray, " q"]
    reference: Int[np.ndarray, " r"]
    descendants: Bool[np.ndarray, "k k"]

    @property
    def scored(self) -> Bool[np.ndarray, " q"]:
        """The query cells whose label some reference cell has."""
        return np.isin(self.query, self.reference[self.reference >= 0])


def number_alike(query: Cells, reference: Cells) -> Labelled:
    """The labels of both, over those that any cell has."""
    names = tuple(sorted(_names(query) | _names(reference)))
    below = np.zeros((len(names),) * 2, bool)
    if query.ontology is not None:
        below = query.ontology.descendants(names)
    return Labelled(names, _numbered(query, names), _numbered(reference, names), below)


def transfer_scores(
    z: Float[np.ndarray, "q d"],
    query: Cells,
    z_reference: Float[np.ndarray, "r d"],
    reference: Cells,
    k: int = 15,
) -> dict[str, float | int]:
    """How right the labels are that an embedding's nearest reference cells give to the query cells.

    Returns:
      The scores of `confusion_scores` over the `num_scored` query cells whose label some of the
      `num_reference` labelled reference cells has.

    Raises:
      ValueError: when no query cell can be scored, or k exceeds the labelled reference cells.
    """
    labels = number_alike(query, reference)
    return prediction_scores(predict(z, z_reference, labels, k), labels)


def prediction_scores(predicted: Int[np.ndarray, " q"], labels: Labelled) -> dict[str, float | int]:
    """The same of the query cells' predicted labels, -1 where they are not scored."""
    C = confusion(labels.query, predicted, len(labels.names))
    return counts(labels) | confusion_scores(C, labels.descendants)


def counts(labels: Labelled) -> dict[str, int]:
    """`num_scored` query cells and `num_reference` labelled reference cells."""
    return {
        "num_scored": int(labels.scored.sum()),
        "num_reference": int((labels.reference >= 0).sum()),
    }


def predict(
    z: Float[np.ndarray, "q d"], z_reference: Float[np.ndarray, "r d"], labels: Labelled, k: int
) -> Int[np.ndarray, " q"]:
    """The label with most weight, 1 / distance, among the k nearest labelled reference cells.

    -1 for the query cells that are not scored.

    Raises:
      ValueError: when no query cell can be scored, or k exceeds the labelled reference cells.
    """
    check_scorable(labels, k)
    scored, known = labels.scored, labels.reference >= 0
    neighbors = nearest_neighbors(z[scored], z_reference[known], k)
    predicted = np.full(len(scored), -1)
    predicted[scored] = transfer_labels(neighbors, labels.reference[known], len(labels.names))
    return predicted


def check_scorable(labels: Labelled, k: int) -> None:
    """Raises a ValueError when no query cell can be scored, or k exceeds the labelled reference cells."""
    if not labels.scored.any():
        here, there = (
            [labels.names[i] for i in np.unique(own[own >= 0])]
            for own in (labels.query, labels.reference)
        )
        raise ValueError(
            f"none of the {len(labels.query)} query cells has a label that a reference cell has: the "
            f"labels are {here} and {there}. Name their columns with label_key= / --label-key (of the "
            "reference --reference-label-key)."
        )
    known = counts(labels)["num_reference"]
    if not 1 <= k <= known:
        raise ValueError(f"k must be from 1 to {known}, the labelled reference cells, but is {k}.")


def confusion(
    truth: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    num_labels: int,
    weights: Num[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "k k"]:
    """C[i, j]: cells of label i that were given label j, each counted `weights` times.

    Cells without a predicted label (-1) are left out.
    """
    scored = predicted >= 0
    pairs = truth[scored] * num_labels + predicted[scored]
    each = None if weights is None else weights[scored]
    found = np.bincount(pairs, each, minlength=num_labels**2).astype(np.float64)
    return found.reshape(num_labels, num_labels)


def confusion_scores(
    C: Float[np.ndarray, "k k"],
    descendants: Bool[np.ndarray, "k k"],
    whole: Float[np.ndarray, "k k"] | None = None,
) -> dict[str, float]:
    """Scores of a confusion matrix, of true labels by predicted ones; NaN where there are no cells.

    Args:
      C: cells of each true label by predicted label.
      descendants: descendants[i, j]: label j is a proper descendant of label i.
      whole: the matrix of all cells, where C is of a resample of them: a label without cells in C keeps
        the F1 and recall that it has there, so that every resample is a mean over the same labels.

    Returns:
      accuracy           share of the cells whose predicted label is the true one
      macro_f1           mean of F1 = 2 TP / (2 TP + FP + FN) over labels that are true or predicted: a
                         label that no cell has counts as 0 once it is predicted of one
      macro_f1_present   mean of F1 over labels that are true, those that the cells have: such a stray
                         prediction costs the label of its cell a hit, and no more
      balanced_accuracy  mean of recall over labels that are true
      ontology_...       the same where a predicted descendant of the true label counts as that label
      as_subtype         share of the cells whose predicted label is a descendant of the true one
      as_parent          share of the cells whose predicted label is an ancestor of the true one
    """
    by_ontology = {
        f"ontology_{name}": score
        for name, score in _strict_scores(
            _descendants_right(C, descendants),
            None if whole is None else _descendants_right(whole, descendants),
        ).items()
    }
    below, above = (C[which].sum() for which in (descendants, descendants.T))
    return {
        **_strict_scores(C, whole),
        **by_ontology,
        "as_subtype": float(ratio(below, C.sum())),
        "as_parent": float(ratio(above, C.sum())),
    }


def _strict_scores(
    C: Float[np.ndarray, "k k"], whole: Float[np.ndarray, "k k"] | None
) -> dict[str, float]:
    f1, recall = _f1_and_recall(C)
    present = (C if whole is None else whole).sum(1) > 0
    if whole is not None:
        in_whole = _f1_and_recall(whole)
        f1, recall = (
            np.where(np.isnan(some), all_, some)
            for some, all_ in zip((f1, recall), in_whole, strict=True)
        )
    return {
        "accuracy": float(ratio(np.trace(C), C.sum())),
        "macro_f1": _mean(f1),
        "macro_f1_present": _mean(f1[present]),
        "balanced_accuracy": _mean(recall),
    }


def _f1_and_recall(C: Float[np.ndarray, "k k"]) -> tuple:
    """Of each label; NaN where it is neither true nor predicted, and where it is not true."""
    hits, true, given = np.diag(C), C.sum(1), C.sum(0)
    return ratio(2 * hits, true + given), ratio(hits, true)


def _descendants_right(
    C: Float[np.ndarray, "k k"], descendants: Bool[np.ndarray, "k k"]
) -> Float[np.ndarray, "k k"]:
    """The matrix where cells that were given a descendant of their label were given the label."""
    return np.where(descendants, 0, C) + np.diag((C * descendants).sum(1))


def per_type(
    C: Float[np.ndarray, "k k"],
    labels: Labelled,
    widths: Float[np.ndarray, " q"],
    order: Int[np.ndarray, " k"],
) -> list[dict]:
    """A row for each label that a query cell has or was given, in the given order of labels.

    Args:
      C: cells of each true label by predicted label.
      labels: the cells' labels.
      widths: silhouette width of each query cell; NaN: it has none.
      order: the labels in the order of the rows.

    Returns:
      Rows of `cell_type`, `num_cells` (query cells of it), `precision`, `recall`, `f1`,
      `ontology_recall` (given the label or a descendant), `mistaken_for` (the most frequent wrong label,
      None: there is none), `mistaken` (its share of the type's cells), `silhouette`. NaN where undefined:
      recall of a type that no scored cell has, precision of one that no cell was given.
    """
    hits, true, given = np.diag(C), C.sum(1), C.sum(0)
    recall, precision, f1 = ratio(hits, true), ratio(hits, given), ratio(2 * hits, true + given)
    in_ontology = recall + ratio((C * labels.descendants).sum(1), true)
    wrong = C - np.diag(hits)
    cells = np.bincount(labels.query[labels.query >= 0], minlength=len(C))
    return [
        {
            "cell_type": labels.names[i],
            "num_cells": int(cells[i]),
            "precision": precision[i],
            "recall": recall[i],
            "f1": f1[i],
            "ontology_recall": in_ontology[i],
            "mistaken_for": labels.names[wrong[i].argmax()] if wrong[i].any() else None,
            "mistaken": ratio(wrong[i].max(), true[i]),
            "silhouette": _mean(widths[labels.query == i]),
        }
        for i in order
        if cells[i] + given[i] > 0
    ]


def _names(cells: Cells) -> set[str]:
    return {cells.label_names[i] for i in np.unique(cells.labels) if i >= 0}


def _numbered(cells: Cells, names: tuple[str, ...]) -> Int[np.ndarray, " cells"]:
    number = {name: i for i, name in enumerate(names)}
    own = [*(number.get(name, -1) for name in cells.label_names), -1]
    return np.array(own)[cells.labels]


def _mean(values: Float[np.ndarray, " n"]) -> float:
    """Mean of the values that are not NaN; NaN where all are."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
