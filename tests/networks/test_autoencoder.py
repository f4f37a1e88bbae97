import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import recorded
from made_up import make_adata
from small_fit import first_state, step_of
from torch_names import network_variables

import jaxmetric as jm
from jaxmetric.batches.batches import pack
from jaxmetric.cells.packed import pack_rows
from jaxmetric.labels.label_set import label_set
from jaxmetric.networks import autoencoder as module


@pytest.mark.parametrize("size", ["small", "deep"])
def test_forward_passes_are_those_of_the_reference(size):
    record = recorded(f"networks_{size}.npz")
    x = jnp.asarray(record["x"])
    before, after = (network_variables(record, which) for which in ("init", "after"))
    params = before["params"]["encoder"]
    sizes = tuple(len(params[f"hidden_{i}"]["linear"]["bias"]) for i in range(len(params) - 1))
    network = jm.Autoencoder(x.shape[1], sizes, len(params["latent"]["bias"]), 0.0, 0.0)
    (z, y), updates = network.apply(before, x, train=True, mutable="batch_stats")
    np.testing.assert_allclose(z, record["train_z"], atol=1e-5)
    np.testing.assert_allclose(y, record["train_x_hat"], atol=1e-5)
    z, y = network.apply(after, x)
    np.testing.assert_allclose(z, record["eval_z"], atol=1e-5)
    np.testing.assert_allclose(y, record["eval_x_hat"], atol=1e-5)
    n = len(x)  # torch's moving variance is the unbiased one: n / (n - 1) of ours
    ours, theirs = updates["batch_stats"], after["batch_stats"]
    for part, layers in theirs.items():
        for name, layer in layers.items():
            moved = ours[part][name]["norm"]
            np.testing.assert_allclose(moved["mean"], layer["norm"]["mean"], atol=1e-6)
            unbiased = 0.9 + (moved["var"] - 0.9) * n / (n - 1)
            np.testing.assert_allclose(unbiased, layer["norm"]["var"], rtol=1e-5)


def test_embeddings_have_unit_length_and_zeros_are_no_nan():
    encoder = jm.Encoder((8,), 4)
    x = jnp.ones((3, 5)).at[1].set(0.0)
    variables = encoder.init(jax.random.key(0), x)
    np.testing.assert_allclose(jnp.linalg.norm(encoder.apply(variables, x), axis=1), 1, rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, variables)
    assert (encoder.apply(nothing, x) == 0).all()


def test_initialisation_is_torchs():
    params = jm.Encoder((400,), 300).init(jax.random.key(0), jnp.ones((2, 100)))["params"]
    for layer, fan_in in ((params["hidden_0"]["linear"], 100), (params["latent"], 400)):
        for values in layer.values():
            bound = fan_in**-0.5
            assert jnp.abs(values).max() <= bound
            assert jnp.abs(values).max() > 0.95 * bound
            assert abs(float(values.std()) / (bound / 3**0.5) - 1) < 0.15
    assert params["hidden_0"]["activation"]["negative_slope"] == 0.25


def test_dropout_acts_in_training_only():
    decoder = jm.Decoder(6, (8, 8), dropout=0.5)
    z = jax.random.normal(jax.random.key(0), (4, 3))
    variables = decoder.init(jax.random.key(0), z)
    train = [
        decoder.apply(
            variables, z, train=True, rngs={"dropout": jax.random.key(i)}, mutable="batch_stats"
        )[0]
        for i in (1, 2)
    ]
    assert (train[0] != train[1]).any()
    np.testing.assert_array_equal(decoder.apply(variables, z), decoder.apply(variables, z))


def test_sizes_as_published():
    encoder = jm.Encoder()
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.ones((1, 28231)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 31_146_115


@pytest.mark.parametrize(("genes", "features"), [(131, 7), (128, 129), (256, 128)])
def test_products_in_whole_tiles_are_those_without(genes, features, monkeypatch):
    """What an accelerator pads with zeros is in no output and no gradient."""
    generator = np.random.default_rng(0)
    x, w, weights = (
        jnp.asarray(generator.normal(size=size) / 12, jnp.float32)
        for size in ((5, genes), (genes, features), (5, features))
    )

    def results():
        def value(x, w):
            y = module._product("float32", x, w, (((1,), (0,)), ((), ())))
            return (weights * y).sum(), y

        (product,) = (
            equation
            for equation in jax.make_jaxpr(value)(x, w).eqns
            if equation.primitive.name == "dot_general"
        )
        gradients, y = jax.grad(value, (0, 1), has_aux=True)(x, w)
        return product.invars[1].aval.shape, (y, *gradients)

    shape, plain = results()
    assert shape == (genes, features)
    monkeypatch.setattr(module, "by_backend", lambda cpu, accelerator: accelerator)
    shape, tiled = results()
    assert shape == tuple(-(-size // 128) * 128 for size in (genes, features))
    for one, other in zip(plain, tiled, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_half_precision_products_train_single_precision_parameters():
    cells = jm.read_cells(make_adata(32), label_key="cell_type", study_key="study")
    rows = np.arange(32)
    packed = pack_rows(cells.X, cells.value_type)
    batch = pack(packed, rows, 1, 40 * 32, cells.labels, cells.studies)
    relations = label_set(cells.label_names, cells.ontology)

    config = jm.Config(hidden_dim=(16,), latent_dim=4, batch_size=32, input_components=0)
    start = first_state(config, len(cells.genes))

    def one_step(compute_dtype):
        changed = dataclasses.replace(config, compute_dtype=compute_dtype)
        state, info = step_of(changed, counts=True)(start, batch, relations)
        return state, float(info["loss"])

    _, expected = one_step("float32")
    state, loss = one_step("bfloat16")
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected  # or the products had not been of another precision
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.variables))
    for path, after in jax.tree_util.tree_leaves_with_path(state.params):
        before = functools.reduce(lambda tree, key: tree[key.key], path, start.params)
        if path[-1].key == "kernel":  # a bias before a normalisation has no gradient to speak of
            assert (after != before).any(), path
