import jax
import numpy as np
import pytest
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cells.cells import log_normalized
from jaxmetric.networks import components

SMALL = {
    "hidden_dim": (16,),
    "latent_dim": 4,
    "batch_size": 32,
    "max_epochs": 2,
    "steps_per_epoch": 3,
}


@pytest.fixture(scope="module")
def cells():
    return jm.read_cells(make_adata(160), label_key="cell_type", study_key="study")


def test_they_are_standardised_scores_on_the_singular_vectors(cells):
    layer = components.leading_components(cells, jm.Config(input_components=6))
    x = log_normalized(cells).toarray()
    found = x @ layer["kernel"] + layer["bias"]
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    expected = (u * s)[:, :6]
    expected = (expected - expected.mean(0)) / expected.std(0)
    alike = found.T @ expected / len(x)
    np.testing.assert_allclose(np.abs(alike).max(0), 1, atol=1e-3)
    np.testing.assert_allclose(np.abs(alike).max(1), 1, atol=1e-3)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-4)


def test_components_that_do_not_exist_are_zero(cells):
    layer = components.leading_components(cells, jm.Config(input_components=50))
    assert layer["kernel"].shape == (40, 50)
    assert (np.abs(layer["kernel"]).sum(0) > 0).sum() == 39


def test_directions_in_which_no_cell_varies_are_no_components():
    """Five different cells, each of them many times, and a gene that none of them has."""
    adata = make_adata(5)
    adata.X = adata.X.toarray() * (np.arange(40) > 0)
    five = jm.read_cells(adata, label_key="cell_type", study_key="study")
    few = five.select(np.arange(100) % 5)
    layer = components.leading_components(few, jm.Config(input_components=20))
    assert (np.abs(layer["kernel"]).sum(0) > 0).sum() <= 5
    assert np.abs(layer["kernel"][0]).max() < 1e-3
    assert np.abs(layer["kernel"]).max() < 100


def test_of_very_many_cells_some_are_drawn(cells, monkeypatch):
    monkeypatch.setattr(components, "MOST", 60)
    one, same, other = (
        components.leading_components(cells, jm.Config(input_components=3, seed=seed))["kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(np.abs(one), np.abs(other))


def test_training_does_not_change_them(cells):
    config = jm.Config(**SMALL, input_components=6, weight_decay=0.5)
    model = jm.fit(cells, config, progress=False)
    layer = components.leading_components(cells, config)
    jax.tree.map(
        np.testing.assert_array_equal, model.variables["params"]["encoder"]["components"], layer
    )
    tuned = jm.fit(cells.select(np.arange(100)), init=model, progress=False)
    kept = tuned.variables["params"]["encoder"]["components"]
    jax.tree.map(np.testing.assert_array_equal, kept, layer)


def test_scimilarity_gets_them_merged_into_the_first_layer(cells, tmp_path):
    model = jm.fit(cells, jm.Config(**SMALL, input_components=6), progress=False)
    model.export_scimilarity(tmp_path / "exported")
    imported = jm.load_scimilarity(tmp_path / "exported")
    assert imported.config.input_components == 0
    assert "components" not in imported.variables["params"]["encoder"]
    np.testing.assert_allclose(imported.embed(cells), model.embed(cells), atol=1e-5)
