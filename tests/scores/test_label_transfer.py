import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.scores.label_transfer import (
    Labelled,
    confusion,
    confusion_scores,
    number_alike,
    per_type,
    transfer_scores,
)

TYPES = ("T cell", "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell")
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


def made_up(num_cells, seed, **obs):
    adata = make_adata(num_cells, types=TYPES, seed=seed)
    for name, values in obs.items():
        adata.obs[name] = values
    return jm.read_cells(adata, label_key="cell_type", study_key="study")


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_scores_of_a_confusion_matrix_are_scikit_learns(pairs):
    truth, predicted = np.array(pairs).T
    C = confusion(truth, predicted, 5)
    np.testing.assert_array_equal(
        C, sklearn.metrics.confusion_matrix(truth, predicted, labels=range(5))
    )
    found = confusion_scores(C, np.zeros((5, 5), bool))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    expected = sklearn.metrics.f1_score(truth, predicted, average="macro")
    assert found["macro_f1"] == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(
        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
    )
    assert found["macro_f1_present"] == pytest.approx(expected)
    recalls = sklearn.metrics.recall_score(
        truth, predicted, average=None, labels=np.unique(truth), zero_division=np.nan
    )
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found["ontology_accuracy"] == found["accuracy"]


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.integers(0, 2**32 - 1))
def test_scores_by_ontology_are_the_definitions(pairs, seed):
    truth, predicted = np.array(pairs).T
    below = np.triu(np.random.default_rng(seed).random((5, 5)) < 0.4, 1)
    found = confusion_scores(confusion(truth, predicted, 5), below)
    subtype = np.mean([below[t, p] for t, p in pairs])
    assert found["as_subtype"] == pytest.approx(subtype)
    assert found["as_parent"] == pytest.approx(np.mean([below[p, t] for t, p in pairs]))
    right = np.mean([t == p or below[t, p] for t, p in pairs])
    assert found["ontology_accuracy"] == pytest.approx(right)
    as_label = [t if below[t, p] else p for t, p in pairs]  # what counts as predicted
    expected = sklearn.metrics.f1_score(truth, as_label, average="macro")
    assert found["ontology_macro_f1"] == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(
        truth, as_label, labels=np.unique(truth), average="macro", zero_division=0
    )
    assert found["ontology_macro_f1_present"] == pytest.approx(expected)
    recalls = [np.equal(as_label, t)[truth == t].mean() for t in np.unique(truth)]
    assert found["ontology_balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_a_label_that_a_resample_lacks_keeps_its_scores_of_all_cells():
    C = confusion(np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 1]), 3)
    weights = np.array([0, 0, 2, 3, 0])
    some = confusion(np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 1]), 3, weights)
    none = np.zeros((3, 3), bool)
    found = confusion_scores(some, none, C)
    # type 0: no hit, 3 wrongly given; type 1: 2 of 5; type 2: neither true nor given, 0 of all cells
    assert found["macro_f1"] == pytest.approx((0 + 4 / 7 + 0) / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 + 2 / 5 + 0) / 3)
    assert found["macro_f1_present"] == found["macro_f1"]  # all three are true of some cell
    assert confusion_scores(C, none, C) == confusion_scores(C, none)


def test_weights_count_a_cell_so_often():
    truth, predicted, weights = np.array([0, 0, 1, 2]), np.array([0, 1, 1, -1]), np.arange(4)
    repeated = (np.repeat(values, weights) for values in (truth, predicted))
    np.testing.assert_array_equal(confusion(truth, predicted, 3, weights), confusion(*repeated, 3))


def test_rows_by_type_are_scikit_learns():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 4, (2, 60))
    truth[:5], predicted[:5] = 4, -1  # a type that no reference cell has
    below = np.zeros((6, 6), bool)
    below[0, 1] = below[0, 2] = True
    labels = Labelled(tuple("abcdef"), truth, np.arange(4), below)
    widths = np.where(truth == 3, np.nan, generator.normal(size=60))
    rows = per_type(confusion(truth, predicted, 6), labels, widths, np.arange(6)[::-1])
    assert [row["cell_type"] for row in rows] == list("edcba")
    scored = predicted >= 0
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        truth[scored], predicted[scored], labels=range(4)
    )
    for i, row in enumerate(rows[:0:-1]):
        own = truth == i
        assert row["num_cells"] == own.sum()
        expected = precision[i], recall[i], f1[i]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(expected)
        in_ontology = np.isin(predicted[own], [i, *np.flatnonzero(below[i])]).mean()
        assert row["ontology_recall"] == pytest.approx(in_ontology)
        wrong = np.bincount(predicted[own & (predicted != i)])
        assert row["mistaken_for"] == "abcdef"[wrong.argmax()]
        assert row["mistaken"] == pytest.approx(wrong.max() / own.sum())
        expected = np.nan if i == 3 else widths[own].mean()
        assert row["silhouette"] == pytest.approx(expected, nan_ok=True)
    assert rows[0]["num_cells"] == 5
    assert np.isnan([rows[0][name] for name in ("precision", "recall", "f1")]).all()
    assert rows[0]["mistaken_for"] is None


def test_transfer_scores_are_those_of_scikit_learns_neighbours():
    query, reference = made_up(60, 0), made_up(90, 1)
    keep = np.array([reference.label_names[i] != "T cell" for i in reference.labels])
    reference = reference.select(keep)  # so T cells are not scored, and others may be subtypes
    generator = np.random.default_rng(0)
    z, z_reference = (generator.normal(size=(len(c), 5)).astype("f4") for c in (query, reference))
    found = transfer_scores(z, query, z_reference, reference, k=7)
    known = np.array(reference.label_names)[reference.labels]
    truth = np.array(query.label_names)[query.labels]
    scored = truth != "T cell"
    model = sklearn.neighbors.KNeighborsClassifier(7, weights="distance").fit(z_reference, known)
    predicted = model.predict(z[scored])
    assert found["num_scored"] == scored.sum()
    assert found["num_reference"] == len(reference)
    assert found["accuracy"] == pytest.approx((predicted == truth[scored]).mean())
    below = query.ontology.descendants(TYPES)
    subtype = [
        below[TYPES.index(t), TYPES.index(p)] for t, p in zip(truth[scored], predicted, strict=True)
    ]
    assert found["as_subtype"] == pytest.approx(np.mean(subtype))
    expected = sklearn.metrics.balanced_accuracy_score(truth[scored], predicted)
    assert found["balanced_accuracy"] == pytest.approx(expected)


def test_cells_without_label_neither_vote_nor_are_scored():
    query, reference = made_up(60, 0), made_up(90, 1)
    generator = np.random.default_rng(0)
    z, z_reference = (generator.normal(size=(len(c), 5)).astype("f4") for c in (query, reference))
    parts = []
    for cells in (query, reference):
        labels = np.where(np.arange(len(cells)) % 3 == 0, -1, cells.labels).astype(np.int32)
        parts.append((jm.Cells(**{**vars(cells), "labels": labels}), labels >= 0))
    (query, labelled), (reference, known) = parts
    found = transfer_scores(z, query, z_reference, reference)
    expected = transfer_scores(
        z[labelled], query.select(labelled), z_reference[known], reference.select(known)
    )
    assert found == expected
    assert (found["num_scored"], found["num_reference"]) == (40, 60)


def test_labels_are_numbered_over_those_in_use():
    query, reference = made_up(40, 0), made_up(40, 1)
    some = query.select(np.array([query.label_names[i] == "B cell" for i in query.labels]))
    labels = number_alike(some, reference)
    assert labels.names == tuple(sorted(TYPES))
    assert {labels.names[i] for i in labels.query} == {"B cell"}
    assert labels.descendants[labels.names.index("T cell")].sum() == 2
    unlabelled = number_alike(some, made_up(40, 1, cell_type="unknown"))
    assert unlabelled.names == ("B cell",)
    assert (unlabelled.reference == -1).all()


def test_cells_without_labels_in_common_are_refused():
    query, reference = made_up(40, 0), made_up(40, 1, cell_type="monocyte")
    z = np.ones((40, 2), np.float32)
    with pytest.raises(ValueError, match=r"none of the 40 query cells .* and \['monocyte'\]"):
        transfer_scores(z, query, z, reference)
    with pytest.raises(ValueError, match="k must be from 1 to 40"):
        transfer_scores(z, query, z, query, k=41)
