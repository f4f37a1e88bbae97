"""What trainings on the made-up cells share: the columns' names, a small config, a comparison."""

import jax
import numpy as np

import jaxmetric as jm

KEYS = {"label_key": "cell_type", "study_key": "study"}
CONFIG = jm.Config(
    hidden_dim=(16,), latent_dim=4, batch_size=32, max_epochs=3, steps_per_epoch=4, margin=0.3
)


def same(one, other):
    """Both models have the same variables, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
