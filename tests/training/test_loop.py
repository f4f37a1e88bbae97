"""What watches over training: the best epoch, patience, values that are not finite, signs of collapse."""

import dataclasses
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial
from conftest import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_adata
from small_fit import CONFIG, KEYS, first_state

import jaxmetric as jm
from jaxmetric.batches.batches import pack
from jaxmetric.cells.packed import pack_rows
from jaxmetric.labels.label_set import label_set
from jaxmetric.sharding import by_cell, cell_mesh, make_repeatable, put_batch, replicated
from jaxmetric.training.collapse import alarms, spread
from jaxmetric.training.step import learning_rate, optimizer, train_step


@pytest.fixture(scope="module")
def cells():
    return jm.read_cells(make_adata(200), **KEYS)


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def test_the_best_epoch_becomes_the_model_and_patience_ends_the_run(cells, device, tmp_path):
    config = changed(monitor="val_silhouette", patience=2, max_epochs=30, learning_rate=0.05)
    options = {"directory": tmp_path / "run", "validation": ["study_0"], "devices": device}
    model = jm.fit(cells, config, **options)
    values = model.history["val_silhouette"].to_numpy()
    best = int(values.argmax())
    assert len(values) == best + 1 + 2 < 30
    held_out = cells.select(cells.in_studies(["study_0"]))
    assert model.evaluate(held_out)["silhouette"] == pytest.approx(values[best], abs=1e-4)
    assert model.trained_on["steps"] == 4 * (best + 1)
    again = jm.fit(cells, config, **options)  # from its checkpoints, nothing trained
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    with pytest.raises(ValueError, match="monitor is val_silhouette, but no cells are held out"):
        jm.fit(cells, config, devices=device)


def test_a_loss_that_is_not_finite_stops_the_run_at_that_step(cells, device, tmp_path, monkeypatch):
    config = changed(learning_rate=1e18)
    with pytest.raises(
        jm.NonFiniteError, match=r"batch \d of epoch 1 .*training cells \d+"
    ) as error:
        jm.fit(cells, config, directory=tmp_path / "run", devices=device)
    assert "no checkpoint was saved" in str(error.value)
    monkeypatch.setattr("jaxmetric.training.feed.train_step", blows_up_after(6))
    config = changed(hidden_dim=(18,))  # a program that no other test has
    with pytest.raises(jm.NonFiniteError, match="batch 3 of epoch 2") as error:
        jm.fit(cells, config, directory=tmp_path / "two", devices=device)
    last_good = tmp_path / "two" / "checkpoints" / "4"
    assert f"the last good checkpoint is {last_good}" in str(error.value)


def blows_up_after(steps):
    def step(state, *arguments, **options):
        state, info = train_step(state, *arguments, **options)
        return state, info | {"loss": jnp.where(state.step > steps, jnp.nan, info["loss"])}

    return step


def test_signs_of_collapse_are_said_once_with_advice(cells, device, caplog):
    config = changed(margin=1e-6, max_epochs=6, triplet_loss_weight=0.0)
    adata = make_adata(200)
    adata.obs["study"] = np.where(adata.obs["cell_type"] == "T cell", "study_0", "study_1")
    adata.obs.iloc[:4, adata.obs.columns.get_loc("study")] = "study_2"
    few = jm.read_cells(adata, **KEYS)
    caplog.set_level(logging.WARNING, "jaxmetric")
    model = jm.fit(few, config, devices=device)
    silent = (model.history["num_triplets"] == 0).to_numpy()
    assert silent[:3].all()
    assert caplog.text.count("no batch gave a triplet") == 1


HEALTHY = {
    "embedding_variance": 0.8,
    "within_distance": 0.5,
    "between_distance": 1.8,
    "num_triplets": 10.0,
    "triplet_loss": 0.03,
}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, None),
        ({"embedding_variance": 1e-5}, "collapse"),
        ({"between_distance": 0.5}, "no separation"),
        ({"num_triplets": 0.0, "triplet_loss": 0.0}, "no triplets"),
        ({"triplet_loss": 0.0501}, "loss at the margin"),
    ],
)
def test_alarms(change, name):
    assert [found for found, _ in alarms(HEALTHY | change, 0.05)] == ([name] if name else [])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 5))
def test_spread_is_the_mean_over_pairs(seed, k):
    generator = np.random.default_rng(seed)
    z, labels = generator.normal(size=(20, 3)), generator.integers(-1, k, 20).astype(np.int32)
    found = spread(jnp.asarray(z, jnp.float32), jnp.asarray(labels), 5)
    z, labels = z[labels >= 0], labels[labels >= 0]
    D = scipy.spatial.distance.cdist(z, z, "sqeuclidean")
    same = labels[:, None] == labels[None, :]
    pairs = ~np.eye(len(z), dtype=bool)

    def mean(values):
        return values.mean() if values.size else 0.0

    expected = {
        "embedding_variance": z.var(0).sum() if len(z) else 0.0,
        "within_distance": mean(D[same & pairs]),
        "between_distance": mean(D[~same]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_warm_up_rises_to_the_cosine():
    config = changed(warmup_steps=8, learning_rate=0.1)
    plain = changed(learning_rate=0.1)
    for step in range(12):
        full = float(learning_rate(plain, jnp.int32(step)))
        expected = full * min(1.0, (step + 1) / 8)
        assert float(learning_rate(config, jnp.int32(step))) == pytest.approx(expected)


def test_gradients_are_clipped_to_their_norm():
    params = {"encoder": {"latent": jnp.zeros(4)}}
    gradient = {"encoder": {"latent": jnp.array([3.0, 4.0, 0.0, 0.0])}}
    means = []
    for clip in (None, 0.5, 50.0):
        transform = optimizer(changed(clip_norm=clip))
        _, state = transform.update(gradient, transform.init(params), params)
        means.append(float(optax.tree.norm(optax.tree.get(state, "mu"))) / 0.1)  # 1 - b1
    np.testing.assert_allclose(means, [5.0, 0.5, 5.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 3}, "Config.patience needs Config.monitor"),
        (
            {"patience": 0, "monitor": "loss"},
            "Config.patience must be a whole number of at least 1",
        ),
        ({"monitor": "accuracy"}, "Config.monitor must be one of loss, triplet_loss"),
        ({"clip_norm": 0.0}, "Config.clip_norm must be greater than 0"),
        ({"warmup_steps": -1}, "Config.warmup_steps must be a whole number"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        changed(**change)


def test_the_flag_for_gpus_is_added_to_those_that_there_are(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    make_repeatable()
    expected = "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == expected


def steps_on(cells, count, num_steps=20):
    """Metrics of steps with dropout, batch normalisation and mining over the whole batch, on devices."""
    config = changed(batch_size=48, perturb_labels_fraction=0.1)
    mesh = cell_mesh(DEVICES[:count])
    everywhere = replicated(mesh)
    step = jax.jit(
        lambda *inputs: train_step(*inputs, config=config, counts=True, mesh=mesh),
        in_shardings=(everywhere, by_cell(mesh), everywhere),
        out_shardings=everywhere,
    )
    state = jax.device_put(first_state(config, len(cells.genes)), everywhere)
    relations = jax.device_put(label_set(cells.label_names, cells.ontology), everywhere)
    infos, packed = [], pack_rows(cells.X, cells.value_type)
    for i in range(num_steps):
        rows = np.random.default_rng(i).integers(0, len(cells), config.batch_size)
        size = 40 * config.batch_size // count
        batch = pack(packed, rows, count, size, cells.labels[rows], cells.studies[rows])
        state, info = step(state, put_batch(batch, mesh), relations)
        infos.append(jax.device_get(info))
    assert step._cache_size() == 1
    return infos


def test_twenty_steps_on_one_to_eight_devices_are_the_same(cells):
    one = steps_on(cells, 1)
    for count in (2, 8):
        for i, (info, expected) in enumerate(zip(steps_on(cells, count), one, strict=True)):
            for name in ("loss", "triplet_loss", "mse"):
                np.testing.assert_allclose(info[name], expected[name], rtol=1e-5, err_msg=f"{i}")
            for name in ("num_triplets", "num_hard", "num_viable"):
                assert info[name] == expected[name], i


def test_devices_share_the_memory_of_pairs():
    """Of mining and its loss, by the compiled program's own account."""
    n = 1024

    def bytes_on(count):
        mesh = cell_mesh(DEVICES[:count])

        def loss(z, key, labels):
            triplets = jm.mine_triplets(key, jax.lax.stop_gradient(z), labels, mesh=mesh)
            return jm.triplet_loss(z, triplets)

        place = by_cell(mesh), replicated(mesh), by_cell(mesh)
        lowered = jax.jit(jax.grad(loss), in_shardings=place, out_shardings=place[0]).lower(
            jax.ShapeDtypeStruct((n, 8), jnp.float32),
            jax.random.key(0),
            jax.ShapeDtypeStruct((n,), jnp.int32),
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one, two, eight = map(bytes_on, (1, 2, 8))
    assert two < 0.6 * one
    assert eight < 0.25 * one
