"""A second run of the same shape compiles nothing, and what it is given as arguments decides."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from made_up import make_adata
from small_fit import CONFIG, KEYS, first_state, step_of

import jaxmetric as jm
from jaxmetric.batches.batches import pack
from jaxmetric.cells.packed import pack_rows
from jaxmetric.labels.label_set import label_set, padded
from jaxmetric.training.numbers import HOST_ONLY, Numbers
from jaxmetric.training.step import train_step

OTHER = {
    "seed": 2**32 - 1,
    "margin": 0.2,
    "triplet_loss_weight": 0.9,
    "l1": 0.01,
    "learning_rate": 0.01,
    "weight_decay": 0.3,
    "warmup_steps": 5,
    "max_epochs": 2,
    "steps_per_epoch": 2,
}
ON_THE_HOST = {
    "monitor": "loss",
    "patience": 2,
    "singleton_labels": "coarsen",
    "silhouette_divisor": "count-1",
    "batch_size": 40,
    "sampling": "per_class",
    "cells_per_class": 8,
    "block_size": 2,
    "shuffle_steps": 2,
}


@pytest.fixture(scope="module")
def cells():
    return jm.read_cells(make_adata(200), **KEYS)


def test_another_seed_and_other_numbers_compile_nothing(cells, device, compiled):
    options = {"validation": ["study_0"], "devices": device, "progress": False}
    config = dataclasses.replace(CONFIG, hidden_dim=(17,))  # that no other test has
    one = jm.fit(cells, config, **options)
    assert compiled
    del compiled[:]
    other = jm.fit(cells, dataclasses.replace(config, **OTHER), **options)
    assert compiled == []
    assert not np.array_equal(one.history["loss"][:2], other.history["loss"])


def batch_of(cells):
    rows = np.arange(32)
    packed = pack_rows(cells.matrix(), cells.value_type)
    return pack(packed, rows, 1, 2048, cells.labels[rows], cells.studies[rows])


def seen(state, info):
    """What a step gave; of the weights, those whose gradients are no rounding errors."""
    return info, state.params["decoder"]["output"]


def test_arguments_do_what_the_config_does(cells):
    relations = padded(label_set(cells.label_names, cells.ontology))
    batch = batch_of(cells)

    def six(step):  # the last of them in an epoch after the first
        state = first_state(CONFIG, len(cells.genes))
        for _ in range(6):
            state, info = step(state, batch, relations)
        return seen(state, info)

    def given(config):
        return six(step_of(config, counts=True))

    other = dataclasses.replace(CONFIG, **OTHER)
    step = jax.jit(functools.partial(train_step, config=other, counts=True))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, given(other), six(lambda *inputs: step(*inputs)))
    assert set(OTHER) == set(Numbers._fields)
    first = given(CONFIG)
    for name, value in OTHER.items():
        changed = jax.tree.leaves(given(dataclasses.replace(CONFIG, **{name: value})))
        pairs = zip(changed, jax.tree.leaves(first), strict=True)
        assert any(not np.array_equal(one, two) for one, two in pairs), name


def test_what_the_host_alone_reads_is_no_part_of_a_step(cells):
    assert set(ON_THE_HOST) == set(HOST_ONLY)
    relations = label_set(cells.label_names, cells.ontology)
    state, batch = first_state(CONFIG, len(cells.genes)), batch_of(cells)

    def traced(config):
        step = functools.partial(train_step, config=config, counts=True)
        return str(jax.make_jaxpr(step)(state, batch, relations))

    assert traced(dataclasses.replace(CONFIG, **ON_THE_HOST)) == traced(CONFIG)


def test_padded_labels_are_related_to_nothing(cells):
    names, ontology = ("B cell", "T cell", "natural killer cell"), jm.CellOntology.default()
    plain = label_set(names, ontology)
    more = padded(plain)
    k, p = plain.parents.shape
    assert more.related.shape == more.descendants.shape == (16, 16)
    assert more.parents.shape == (16, 4)
    np.testing.assert_array_equal(more.related[:k, :k], plain.related)
    np.testing.assert_array_equal(more.descendants[:k, :k], plain.descendants)
    np.testing.assert_array_equal(more.parents[:k, :p], plain.parents)
    assert not more.related[k:].any()
    assert not more.related[:, k:].any()
    assert (more.parents[k:] == -1).all()
    assert (more.parents[:, p:] == -1).all()
