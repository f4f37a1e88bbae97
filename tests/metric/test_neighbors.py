import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.neighbors

from jaxmetric.metric import neighbors as module


def test_nearest_neighbours_and_label_transfer_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 500)  # several chunks, the last one shorter
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(90, 6)).astype(np.float32)
    query = np.concatenate([generator.normal(size=(40, 6)).astype(np.float32), reference[:3]])
    labels = generator.integers(0, 5, 90)
    model = sklearn.neighbors.KNeighborsClassifier(15, weights="distance").fit(reference, labels)
    neighbors = module.nearest_neighbors(query, reference, 15)
    distances, indices = model.kneighbors(query)
    np.testing.assert_allclose(neighbors.distances, distances, atol=2e-3)
    np.testing.assert_array_equal(np.sort(neighbors.indices), np.sort(indices))
    predicted = module.transfer_labels(neighbors, labels, 5)
    np.testing.assert_array_equal(predicted, model.predict(query))


def test_neighbours_are_right_where_other_cells_are_far_away():
    """A product of rows far from each other keeps few digits of the distances of those close by."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(400, 4)).astype(np.float32)
    for far in (np.arange(400) == 0, np.arange(400) < 200):
        moved = z + np.float32(1000) * far[:, None].astype(np.float32)
        expected = sklearn.neighbors.NearestNeighbors(n_neighbors=15).fit(moved.astype(np.float64))
        distances, indices = expected.kneighbors()
        found = module.nearest_neighbors(moved, moved, 15, exclude_self=True)
        assert (np.sort(found.indices) == np.sort(indices)).mean() > 0.999
        np.testing.assert_allclose(found.distances, distances, rtol=1e-3)


def test_cells_in_one_place_are_at_distance_0_and_the_first_comes_first():
    unit = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = module.nearest_neighbors(unit, np.concatenate([unit, unit]), 3)
    assert (found.distances[:, :2] == 0).all()
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(300))


def test_no_cell_is_a_neighbour_of_one_of_its_own_group(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 200)
    generator = np.random.default_rng(0)
    z = generator.normal(size=(40, 3)).astype(np.float32)
    groups = generator.integers(0, 4, 40)
    found = module.nearest_neighbors(z[:17], z, 5, groups=(groups[:17], groups))
    for i in range(17):
        other = np.flatnonzero(groups != groups[i])
        nearest = other[np.argsort(np.linalg.norm(z[other] - z[i], axis=1))[:5]]
        np.testing.assert_array_equal(found.indices[i], nearest)
    most = 40 - int(np.bincount(groups).max())
    assert module.nearest_neighbors(z, z, most, groups=(groups, groups)).distances.max() < np.inf
    with pytest.raises(ValueError, match=f"k must be from 1 to {most}"):
        module.nearest_neighbors(z, z, most + 1, groups=(groups, groups))


def test_more_neighbours_than_cells_are_refused():
    z = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="k must be from 1 to 4"):
        module.nearest_neighbors(z, z, 5)


@pytest.mark.parametrize(
    ("columns", "k", "block"),
    [
        (1000, 5, 16),  # whole blocks and a part of one
        (1000, 5, 1000),  # one block: the whole row is sorted
        (97, 11, 8),  # 13 blocks, the last of one column
        (97, 13, 8),  # no more blocks than neighbours: the whole row again
        (96, 11, 8),
        (33, 1, 16),
        (40, 12, 3),
    ],
)
@pytest.mark.parametrize("ties", ["many", "few", "infinite"])
def test_the_least_of_blocks_are_those_of_whole_rows(columns, k, block, ties):
    """Of ties the first, as in a stable sort, where they lie in one block and where in several."""
    generator = np.random.default_rng(columns + k)
    x = generator.integers(0, 4 if ties == "many" else 500, (30, columns)).astype(np.float32)
    if ties == "infinite":  # excluded cells: fewer than k others in some rows, none in the last
        x[generator.random((30, columns)) < np.linspace(0, 1, 30)[:, None]] = np.inf
        x[-1] = np.inf
    expected = np.sort(np.argsort(x, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(module._least(jnp.asarray(x), k, block), expected)
