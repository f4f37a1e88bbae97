import numpy as np

import jaxmetric as jm
from jaxmetric.labels.label_set import (
    coarsen_singletons,
    depth_first_order,
    label_set,
    singleton_labels,
)

ONTOLOGY = jm.CellOntology.default()


def test_labels_keep_their_numbers_and_their_parents_follow():
    names = ("B cell", "CD4-positive, alpha-beta T cell", "T cell", "monocyte")
    relations = label_set(names, ONTOLOGY)
    k = len(relations.related)
    assert relations.related.shape == relations.descendants.shape == (k, k)
    assert len(relations.parents) == k
    assert relations.related[1, 2]
    assert relations.descendants[2, 1]
    assert not relations.related[0, 2]
    above = ONTOLOGY.parents(names)
    for i, parents in enumerate(above):
        numbers = relations.parents[i][relations.parents[i] >= 0]
        assert len(numbers) == len(parents)
        assert relations.descendants[numbers, i].all()
    assert (relations.parents[len(names) :] == -1).all()


def test_without_ontology_a_label_is_related_to_itself_alone():
    relations = label_set(("a", "b"), None)
    np.testing.assert_array_equal(relations.related, np.eye(2, dtype=bool))
    assert not relations.descendants.any()
    assert (relations.parents == -1).all()


def test_labels_of_one_study_move_to_the_nearest_ancestor_present():
    names = ["CD4-positive, alpha-beta T cell", "T cell", "lymphocyte", "monocyte"]
    labels = np.int32([0, 0, 1, 1, 2, 3, -1])
    studies = np.int32([0, 0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(singleton_labels(labels, studies), [0, 2, 3])
    moved = coarsen_singletons(labels, studies, names, ONTOLOGY)
    np.testing.assert_array_equal(moved, [1, 1, 1, 1, 2, 3, -1])  # nothing is above the others


def test_coarsening_goes_on_until_nothing_moves():
    names = ["CD4-positive, alpha-beta T cell", "T cell", "lymphocyte"]
    moved = coarsen_singletons(np.int32([0, 1, 2]), np.int32([0, 0, 1]), names, ONTOLOGY)
    np.testing.assert_array_equal(moved, [2, 2, 2])


def test_relatives_lie_together_each_before_its_descendants():
    names = sorted(
        (
            "B cell",
            "naive B cell",
            "monocyte",
            "CD14-positive monocyte",
            "T cell",
            "CD4-positive, alpha-beta T cell",
            "CD8-positive, alpha-beta T cell",
            "fibroblast",
        )
    )
    order = depth_first_order(names, ONTOLOGY)
    assert sorted(order) == list(range(len(names)))
    above = ONTOLOGY.ancestors([names[i] for i in order])
    assert not np.triu(above).any()
    for ancestor in np.flatnonzero(above.any(0)):
        below = np.flatnonzero(above[:, ancestor])
        np.testing.assert_array_equal(below, ancestor + 1 + np.arange(len(below)))
    np.testing.assert_array_equal(depth_first_order(["b", "a", "c"], None), [1, 0, 2])
