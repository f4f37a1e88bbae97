"""Signs that an embedding collapses, or that nothing is learned: measured each step, said in words."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

LEAST_VARIANCE = 1e-3  # of unit rows, whose variance is at most 1
LEAST_RATIO = 1.02  # of mean squared distances between and within labels, which are equal by chance
NEAR_MARGIN = 0.01  # the loss of identical embeddings is the margin


def spread(
    z: Float[Array, "n d"], labels: Integer[Array, " n"], num_labels: int
) -> dict[str, Float[Array, ""]]:
    """Variance of the embeddings, and mean squared distance of two cells within and between labels.

    From sums over labels, O(n k d): over the ordered pairs of n_l cells, the squared distances sum to
    2 n_l sum |z|^2 - 2 |sum z|^2. Cells without label are left out; 0 where there is no pair.
    """
    members = jax.nn.one_hot(labels, num_labels)
    size, total = members.sum(0), jnp.maximum(members.sum(), 1)
    z = z - (_dot(members.sum(1), z) / total)[None, :]
    square = _dot(members.T, (z**2).sum(1))
    variance = square.sum() / total
    within = 2 * (_dot(size, square) - (_dot(members.T, z) ** 2).sum())
    all_pairs = 2 * total * square.sum()
    pairs_within = (size * (size - 1)).sum()
    pairs_between = total**2 - (size**2).sum()
    return {
        "embedding_variance": variance,
        "within_distance": _mean(within, pairs_within),
        "between_distance": _mean(all_pairs - within, pairs_between),
    }


def _dot(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _mean(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(count > 0, jnp.maximum(total, 0.0) / jnp.maximum(count, 1), 0.0)


def alarms(row: dict[str, float], margin: float) -> Iterator[tuple[str, str]]:
    """Name and advice of each sign in an epoch's means."""
    if row["embedding_variance"] < LEAST_VARIANCE:
        yield (
            "collapse",
            f"the embeddings have almost collapsed to one point (variance "
            f"{row['embedding_variance']:.2g}). Lower learning_rate, set clip_norm=1 and warmup_steps, "
            "prefer negative_selection='semihard' to 'hardest', or lower triplet_loss_weight.",
        )
    elif 0 < row["between_distance"] < LEAST_RATIO * row["within_distance"]:
        yield (
            "no separation",
            f"cells of different labels are no farther apart ({row['between_distance']:.3g}, mean "
            f"squared distance) than cells of one label ({row['within_distance']:.3g}). Check the label "
            "column, or raise triplet_loss_weight.",
        )
    if row["num_triplets"] == 0:
        yield (
            "no triplets",
            "no batch gave a triplet. Is there a label in several studies (or set "
            "sample_across_studies=False)? Are all labels related to each other? Else everything is "
            "farther than the margin: raise margin, or stop.",
        )
    elif abs(row["triplet_loss"] - margin) < NEAR_MARGIN * margin:
        yield (
            "loss at the margin",
            f"the triplet loss stays at the margin ({margin:g}), as it does when positives and "
            "negatives are equally far. Lower learning_rate, or change negative_selection.",
        )
