"""What trainings on the made-up cells share: the columns' names, a small config, a comparison."""

import functools

import jax
import numpy as np

import jaxmetric as jm
from jaxmetric.training.numbers import numbers_of, structure_of
from jaxmetric.training.step import init_state, train_step

KEYS = {"label_key": "cell_type", "study_key": "study"}
CONFIG = jm.Config(
    hidden_dim=(16,), latent_dim=4, batch_size=32, max_epochs=3, steps_per_epoch=4, margin=0.3
)


@functools.cache
def first_state(config, num_genes):
    """The state before the first step, by one program."""
    return jax.jit(functools.partial(init_state, config, num_genes))()


@functools.cache
def step_of(config, counts):
    """(state, batch, relations) -> (state, info), by one program for all configs of a structure."""
    return functools.partial(_step_of(structure_of(config), counts), numbers=numbers_of(config))


@functools.cache
def _step_of(config, counts):
    return jax.jit(functools.partial(train_step, config=config, counts=counts))


def same(one, other):
    """Both models have the same variables, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
