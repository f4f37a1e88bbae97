import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from jaxmetric.networks import discriminants as module
from jaxmetric.networks.discriminants import cell_weights, discriminants


def made_up(n=400, d=8, num_labels=4, num_studies=3, seed=0):
    """Points of labels that differ, of unequal size, with shifts of their own in each study."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(num_labels, n, p=np.arange(1, num_labels + 1) / 10)
    studies = generator.integers(0, num_studies, n)
    mix = generator.normal(size=(d, d))
    centers, shifts = 3 * generator.normal(size=(num_labels, d)), generator.normal(size=(9, 9, d))
    z = centers[labels] + shifts[labels, studies] * np.arange(d) / d + generator.normal(size=(n, d))
    return z @ mix, labels, studies


def by_loops(z, labels, studies):
    """Noise and scatter of label means, as the docstring says."""
    names, d = np.unique(labels), z.shape[1]
    W, S, means, total = np.zeros((d, d)), np.zeros((d, d)), [], 0.0
    for label in names:
        root = np.sqrt((labels == label).sum())
        groups = [
            z[(labels == label) & (studies == s)] for s in np.unique(studies[labels == label])
        ]
        centers = np.array([group.mean(0) for group in groups])
        total += root
        for group, center in zip(groups, centers, strict=True):
            W += root / len(groups) * np.cov(group.T, bias=True)
            S += root / len(groups) * np.outer(center - centers.mean(0), center - centers.mean(0))
        means.append(centers.mean(0))
    noise = (W + S) / total
    noise += module.RIDGE * np.trace(noise) / len(z) * np.eye(d)
    return noise, np.cov(np.array(means).T, bias=True)


def test_they_solve_the_eigenproblem_of_the_definition():
    z, labels, studies = made_up()
    U, center = discriminants(z, labels, studies, 64)
    noise, B = by_loops(z, labels, studies)
    assert U.shape == (8, 3)
    np.testing.assert_allclose(U.T @ noise @ U, np.eye(3), atol=1e-8)
    values = np.sort(np.linalg.eigvals(np.linalg.solve(noise, B)).real)[::-1]
    np.testing.assert_allclose(U.T @ B @ U, np.diag(values[:3]), atol=1e-8)
    assert (values[3:] < 1e-8).all()
    parts = [[z[(labels == i) & (studies == s)].mean(0) for s in range(3)] for i in range(4)]
    np.testing.assert_allclose(center, np.mean(parts, axis=(0, 1)), atol=1e-8)


def test_of_one_study_and_equal_labels_they_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    z, _, _ = made_up()
    labels = np.arange(400) % 4
    z += labels[:, None] * np.arange(8) - (labels[:, None] == 2) * np.ones(8)
    U, _ = discriminants(z, labels, np.zeros(400, int), 64)
    expected = LinearDiscriminantAnalysis(solver="eigen").fit(z, labels).scalings_[:, :3]
    for ours, theirs in zip(U.T, expected.T, strict=True):
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert abs(cosine) > 1 - 1e-9


def test_a_direction_in_which_studies_differ_counts_as_noise():
    generator = np.random.default_rng(0)
    labels, studies = (
        np.arange(600) % 2,
        (np.arange(600) > 540).astype(int) + (np.arange(600) > 570),
    )
    z = generator.normal(size=(600, 2))
    z[:, 0] += 4 * labels * (studies == 0)  # in the study that most cells are of
    z[:, 1] += 2 * labels
    U, _ = discriminants(z, labels, studies, 1)
    pooled, _ = discriminants(z, labels, np.zeros(600, int), 1)
    across, within = (abs(directions[1, 0] / directions[0, 0]) for directions in (U, pooled))
    assert across > 2 * within


@pytest.mark.parametrize("number", [1, 2])
def test_the_most_telling_come_first(number):
    z, labels, studies = made_up()
    U, _ = discriminants(z, labels, studies, number)
    np.testing.assert_allclose(U, discriminants(z, labels, studies, 64)[0][:, :number], atol=1e-8)


def test_single_cells_of_each_label_have_discriminants():
    z = np.eye(5)[:3]
    U, _ = discriminants(z, np.arange(3), np.zeros(3, int), 64)
    assert U.shape == (5, 2)
    assert np.isfinite(U).all()


def test_labels_and_their_studies_weigh_the_root_of_their_cells():
    labels = np.repeat([0, 0, 1, 3], [90, 10, 4, 25])
    studies = np.repeat([0, 2, 1, 1], [90, 10, 4, 25])
    weights = cell_weights(labels, studies)
    assert weights.mean() == pytest.approx(1)
    totals = np.bincount(labels, weights)
    np.testing.assert_allclose(totals[[0, 1, 3]] / totals[1], [5, 1, 2.5])
    of_study = np.bincount(studies[labels == 0], weights[labels == 0])
    np.testing.assert_allclose(of_study[0] / of_study[2], 3)


def test_cells_that_are_all_alike_have_finite_discriminants():
    U, _ = discriminants(np.ones((6, 3)), np.arange(6) % 2, np.zeros(6, int), 64)
    assert np.isfinite(U).all()
