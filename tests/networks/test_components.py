import jax
import jax.numpy as jnp
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
    layer = components.input_layer(cells, jm.Config(discriminants=False, input_components=6))
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
    layer = components.input_layer(cells, jm.Config(discriminants=False, input_components=50))
    assert layer["kernel"].shape == (40, 50)
    assert (np.abs(layer["kernel"]).sum(0) > 0).sum() == 39


def test_directions_in_which_no_cell_varies_are_no_components():
    """Five different cells, each of them many times, and a gene that none of them has."""
    adata = make_adata(5)
    adata.X = adata.X.toarray() * (np.arange(40) > 0)
    five = jm.read_cells(adata, label_key="cell_type", study_key="study")
    few = five.select(np.arange(100) % 5)
    layer = components.input_layer(few, jm.Config(discriminants=False, input_components=20))
    assert (np.abs(layer["kernel"]).sum(0) > 0).sum() <= 5
    assert np.abs(layer["kernel"][0]).max() < 1e-3
    assert np.abs(layer["kernel"]).max() < 100


def test_of_very_many_cells_some_are_drawn(cells, monkeypatch):
    monkeypatch.setattr(components, "MOST", 60)
    one, same, other = (
        components.input_layer(
            cells, jm.Config(discriminants=False, input_components=3, seed=seed)
        )["kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(np.abs(one), np.abs(other))


@pytest.mark.parametrize("discriminants", [True, False])
def test_training_does_not_change_them(cells, device, discriminants):
    config = jm.Config(**SMALL, discriminants=discriminants, input_components=6, weight_decay=0.5)
    model = jm.fit(cells, config, devices=device)
    layer = components.input_layer(cells, config)
    jax.tree.map(
        np.testing.assert_array_equal, model.variables["params"]["encoder"]["components"], layer
    )
    tuned = jm.fit(cells.select(np.arange(100)), init=model, devices=device)
    kept = tuned.variables["params"]["encoder"]["components"]
    jax.tree.map(np.testing.assert_array_equal, kept, layer)


@pytest.mark.parametrize("discriminants", [True, False])
def test_scimilarity_gets_them_merged_into_its_layers(cells, device, tmp_path, discriminants):
    sizes = {"hidden_dim": (16, 12), "latent_dim": 8, "discriminants": discriminants}
    model = jm.fit(cells, jm.Config(**SMALL | sizes, input_components=6), devices=device)
    model.export_scimilarity(tmp_path / "exported")
    imported = jm.load_scimilarity(tmp_path / "exported")
    assert imported.config.input_components == 0
    assert "components" not in imported.variables["params"]["encoder"]
    assert imported.config.hidden_dim == ((24, 20) if discriminants else (16, 12))
    z = model.embed(cells)
    np.testing.assert_allclose(imported.embed(cells), z, atol=1e-5)
    reconstructed = (
        one.network.apply(one.variables, jnp.asarray(z), method="reconstruct")
        for one in (model, imported)
    )
    np.testing.assert_allclose(*reconstructed, atol=1e-5)


def test_half_of_the_embedding_is_the_discriminants(cells, device):
    sizes = {"latent_dim": 12, "input_components": 20}
    model = jm.fit(cells, jm.Config(**SMALL | sizes), devices=device)
    layer = components.input_layer(cells, model.config)
    y = log_normalized(cells) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose((y**2).sum(1).mean(), 1, rtol=1e-4)
    z = model.embed(cells)
    assert np.linalg.matrix_rank(y, tol=1e-3) == 3  # four labels
    np.testing.assert_allclose(z[:, :6], y * (z[:, -1:] / 0.5), atol=1e-5)
    assert (z[:, -1] > 0).all()
    assert z[:, 6:-1].std() > 0


def test_cells_of_one_gene_have_no_components(cells):
    one = cells.with_genes(cells.genes[:1])
    for discriminants in (True, False):
        with pytest.raises(ValueError, match="needs at least 2 cells and 2 genes"):
            components.input_layer(one, jm.Config(discriminants=discriminants))
