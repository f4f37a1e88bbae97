"""The label set of a run as arrays: what is related to what, and what lies one level up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxmetric.labels.ontology import CellOntology


class LabelSet(NamedTuple):
    """Relations between the k labels of a run.

    Attributes:
      related: related[i, j]: j is i, an ancestor or a descendant of i.
      descendants: descendants[i, j]: j is a proper descendant of i.
      parents: the labels one level above each label, filled up with -1.
    """

    related: Bool[Any, "k k"]
    descendants: Bool[Any, "k k"]
    parents: Int[Any, "k p"]


def label_set(names: Sequence[str], ontology: CellOntology | None) -> LabelSet:
    """The relations between labels and their direct parents.

    The labels keep their numbers, 0 to len(names) - 1; parents that are no labels themselves follow,
    so that a label coarsened one level up has a number too. Without ontology, a label is related to
    itself alone.
    """
    if ontology is None:
        k = len(names)
        return LabelSet(
            np.eye(k, dtype=bool), np.zeros((k, k), bool), np.full((k, 1), -1, np.int32)
        )
    above = ontology.parents(names)
    known = set(names)
    terms = [*names, *sorted({parent for parents in above for parent in parents} - known)]
    number = {term: i for i, term in enumerate(terms)}
    parents = np.full((len(terms), max(1, *map(len, above), 1)), -1, np.int32)
    for i, up in enumerate(above):
        parents[i, : len(up)] = [number[parent] for parent in up]
    return LabelSet(ontology.related(terms), ontology.descendants(terms), parents)


LABELS, PARENTS = 16, 4  # to multiples of which a label set is padded


def padded(labels: LabelSet) -> LabelSet:
    """The same labels and more, related to nothing, so that few shapes have to be compiled for."""
    k, p = labels.parents.shape
    more, wider = -k % LABELS, -p % PARENTS
    return LabelSet(
        np.pad(labels.related, (0, more)),
        np.pad(labels.descendants, (0, more)),
        np.pad(labels.parents, ((0, more), (0, wider)), constant_values=-1),
    )


def depth_first_order(names: Sequence[str], ontology: CellOntology | None) -> Int[np.ndarray, " k"]:
    """The labels' numbers in an order in which relatives lie together: a label before its descendants.

    Each label hangs below its nearest ancestor among the labels, else below its most specific direct
    parent in the ontology, and so on up; names decide between siblings. A label with two ancestors that
    are no relatives lies below one of them. Without ontology, the order is that of the names.
    """
    if ontology is None:
        return np.argsort(np.array(names, object), kind="stable")

    def lineage(name: str) -> list[str]:
        path = [name]
        while (up := parent(path[-1])) is not None and up not in path:
            path.append(up)
        return path[::-1]

    def parent(name: str) -> str | None:
        (present,) = ontology.nearest_present_parent([name], names)
        (any_one,) = ontology.nearest_present_parent([name], ontology.parents([name])[0])
        return present or any_one

    paths = [lineage(name) for name in names]
    return np.array(sorted(range(len(names)), key=paths.__getitem__), int)


def singleton_labels(
    labels: Int[np.ndarray, " n"], studies: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " s"]:
    """The labels found in a single study: none of their cells has a positive in another study."""
    pairs = np.unique(np.stack([labels, studies], 1), axis=0)
    found, num_studies = np.unique(pairs[:, 0], return_counts=True)
    return found[(num_studies == 1) & (found >= 0)]


def coarsen_singletons(
    labels: Int[np.ndarray, " n"],
    studies: Int[np.ndarray, " n"],
    names: Sequence[str],
    ontology: CellOntology,
) -> Int[np.ndarray, " n"]:
    """Labels found in a single study become their nearest ancestor among the labels present.

    Repeated until nothing changes, as a coarsened label can meet cells of another study; labels
    without such an ancestor stay as they are.
    """
    labels = labels.copy()
    while True:
        present = np.unique(labels[labels >= 0])
        spelled = [names[i] for i in present]
        number = dict(zip(spelled, present, strict=True))
        single = singleton_labels(labels, studies)
        up = ontology.nearest_present_parent([names[i] for i in single], present=spelled)
        moves = {i: number[name] for i, name in zip(single, up, strict=True) if name is not None}
        if not moves:
            return labels
        for i, parent in moves.items():
            labels[labels == i] = parent
