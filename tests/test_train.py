"""Steps of training against the reference's own, recorded with dropout 0 and hardest negatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import recorded
from torch_names import network_variables

import jaxmetric as jm
from jaxmetric.batches import Batch
from jaxmetric.labels import LabelSet
from jaxmetric.train import TrainState, eval_step, init_state, learning_rate, optimizer, train_step


def batch_of(x, labels, studies):
    n, num_genes = x.shape
    columns = np.tile(np.arange(num_genes, dtype=np.int32), (n, 1))
    batch = Batch(columns, np.float32(x), np.int32(labels), np.int32(studies), np.ones(n, bool))
    return jax.tree.map(jnp.asarray, batch)


def recorded_batch(record, name):
    return batch_of(*(record[f"{name}.{part}"] for part in ("x", "labels", "studies")))


def relations():
    matrices = recorded("ontology_matrix.npz")
    none = np.full((22, 1), -1, np.int32)
    return jax.tree.map(jnp.asarray, LabelSet(matrices["related"], matrices["descendants"], none))


@pytest.mark.parametrize("name", ["mixed", "mse_only", "triplet_only"])
def test_steps_are_those_of_the_reference(name):
    """The log within 1e-4 relative at every step.

    Looser than float32 for the reason that a bias before a batch normalisation has a gradient of
    rounding errors alone, which Adam scales to full steps in directions that change no output.
    """
    record = recorded(f"training_{name}.npz")
    variables = network_variables(record, "init")
    params = variables["params"]["encoder"]
    config = jm.Config(
        hidden_dim=[len(params[f"hidden_{i}"]["linear"]["bias"]) for i in range(len(params) - 1)],
        latent_dim=len(params["latent"]["bias"]),
        dropout=0.0,
        input_dropout=0.0,
        margin=float(record["margin"]),
        negative_selection="hardest",
        metric="euclidean",
        mining_metric="sqeuclidean",
        triplet_loss_weight=float(record["triplet_loss_weight"]),
        l1=float(record["l1"]),
        weight_decay=float(record["l2"]),
        learning_rate=float(record["lr"]),
        max_epochs=int(record["epochs"]),
        steps_per_epoch=int(record["steps_per_epoch"]),
    )
    state = TrainState(
        jnp.int32(0),
        variables["params"],
        variables["batch_stats"],
        optimizer(config).init(variables["params"]),
    )
    step = jax.jit(functools.partial(train_step, config=config, counts=False))
    columns = [
        "learning_rate" if column == "lr" else str(column) for column in record["log_columns"]
    ]
    for i, row in enumerate(record["log"]):
        state, info = step(state, recorded_batch(record, f"batch{i}"), relations())
        for column, expected in zip(columns, row, strict=True):
            if column in info:
                tolerance = {"rtol": 1e-3 if (name, column) == ("triplet_only", "mse") else 1e-4}
                np.testing.assert_allclose(info[column], expected, **tolerance, err_msg=column)
    assert {"loss", "triplet_loss", "mse", "hard_fraction", "num_nonzero"} <= set(columns) & set(
        info
    )
    evaluate = jax.jit(functools.partial(eval_step, config=config, counts=False))
    info = evaluate(state.variables, recorded_batch(record, "eval"), relations(), jax.random.key(0))
    expected = dict(zip(record["eval.names"].tolist(), record["eval.values"].tolist(), strict=True))
    mean = info.sums["triplet_loss"] / info.sums["num_triplets"]
    mse = info.error.sum() / record["eval.x"].size
    nmse = info.error.sum() / info.power.sum()
    # 2e-2: the moving variance is torch's unbiased one there, the biased one here
    np.testing.assert_allclose(mse, expected["val_mse"], rtol=2e-2)
    np.testing.assert_allclose(nmse, expected["val_nmse"], rtol=2e-2)
    np.testing.assert_allclose(mean, expected["val_triplet_loss"], rtol=2e-2)
    assert info.sums["num_viable"] == expected["val_num_viable_triplets"]


SMALL = jm.Config(hidden_dim=(8,), latent_dim=4, batch_size=16, max_epochs=4, steps_per_epoch=2)


def test_learning_rate_is_half_a_cosine_constant_within_an_epoch():
    rates = [float(learning_rate(SMALL, jnp.int32(step))) for step in range(8)]
    expected = 5e-3 / 2 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(rates, np.repeat(expected, 2), rtol=1e-6)


def test_state_is_a_function_of_the_seed():
    one, same = init_state(SMALL, 6), init_state(SMALL, 6)
    other = init_state(jm.Config(hidden_dim=(8,), latent_dim=4, seed=1), 6)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernel = lambda state: state.params["encoder"]["latent"]["kernel"]  # noqa: E731
    assert (kernel(one) != kernel(other)).any()


@pytest.mark.parametrize(
    ("x", "labels", "studies"),
    [
        (np.ones((16, 6)), np.arange(16) % 4, np.arange(16) % 3),  # duplicate cells
        (np.eye(16, 6), np.zeros(16), np.arange(16) % 3),  # one label
        (np.eye(16, 6), np.arange(16) % 4, np.zeros(16)),  # one study
        (np.zeros((16, 6)), np.arange(16) % 4, np.arange(16) % 3),  # nothing expressed
        (np.ones((1, 6)), np.zeros(1), np.zeros(1)),  # one cell
        (np.eye(16, 6), np.full(16, -1), np.zeros(16)),  # no label
    ],
)
def test_step_is_finite_for_degenerate_batches(x, labels, studies):
    step = jax.jit(functools.partial(train_step, config=SMALL, counts=True))
    state, info = step(init_state(SMALL, 6), batch_of(x, labels, studies), relations())
    assert all(np.isfinite(value) for value in info.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert state.step == 1
    if (labels <= 0).all():
        assert (info["triplet_loss"], info["num_triplets"], info["hard_fraction"]) == (0, 0, 0)


def test_dropout_differs_from_step_to_step():
    batch = batch_of(np.eye(16, 6), np.arange(16) % 4, np.arange(16) % 3)
    state = init_state(SMALL, 6)
    step = jax.jit(functools.partial(train_step, config=SMALL, counts=True))
    mse = [step(state._replace(step=jnp.int32(i)), batch, relations())[1]["mse"] for i in (0, 1, 0)]
    assert mse[0] == mse[2] != mse[1]
