"""How far away is the nearest reference cell of a cell's own type, and of an unrelated type?"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmetric.metric.distances import pairwise_distances
from jaxmetric.shapes import filled, padded_size

CHUNK = 2**22  # distances held at a time


def nearest_own_and_unrelated(
    z: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    z_reference: Float[np.ndarray, "r d"],
    reference_labels: Int[np.ndarray, " r"],
    descendants: Bool[np.ndarray, "k k"],
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Distances of each cell to the nearest reference cells of its own and of an unrelated label.

    Euclidean; unrelated is a label that is neither its own, an ancestor nor a descendant. Labels are in
    [0, k). Infinite where there is no such cell.
    """
    own = np.eye(len(descendants), dtype=bool)
    unrelated = ~(own | descendants | descendants.T)
    size = padded_size(len(z_reference))
    reference = jnp.asarray(filled(z_reference, size))
    rows, found = min(padded_size(len(z)), max(1, CHUNK // size)), []
    for start in range(0, len(z), rows):
        chunk = slice(start, start + rows)
        masks = (of[labels[chunk]][:, reference_labels] for of in (own, unrelated))
        masks = (filled(filled(mask.T, size).T, rows) for mask in masks)
        found.append(jax.device_get(_nearest(filled(z[chunk], rows), reference, *masks)))
    near, far = zip(*found, strict=True)
    return np.concatenate(near)[: len(z)], np.concatenate(far)[: len(z)]


@jax.jit
def _nearest(
    z: Float[Array, "c d"],
    reference: Float[Array, "r d"],
    own: Bool[Array, "c r"],
    unrelated: Bool[Array, "c r"],
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    D = pairwise_distances(z, reference, "euclidean")
    return jnp.where(own, D, jnp.inf).min(1), jnp.where(unrelated, D, jnp.inf).min(1)
