"""Packed rows -> log-normalised expression, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TARGET_SUM = 1e4


def densify(
    columns: Int[Array, "n w"], values: Float[Array, "n w"], num_genes: int
) -> Float[Array, "n genes"]:
    """The dense matrix of packed rows; columns of `num_genes` and more are padding."""
    return jax.vmap(
        lambda column, value: jnp.zeros(num_genes, value.dtype).at[column].set(value, mode="drop")
    )(columns, values)


def log_normalize(counts: Float[Array, "n w"]) -> Float[Array, "n w"]:
    """log1p of counts per 10,000 of each row; a row without counts stays zero.

    Scanpy's `normalize_total(target_sum=1e4)` and `log1p`. Zeros stay zeros, so packed rows can be
    normalised before they are densified.
    """
    total = counts.sum(-1, keepdims=True)
    return jnp.log1p(counts * (TARGET_SUM / jnp.where(total > 0, total, 1.0)))


def expression(
    columns: Int[Array, "n w"], values: Float[Array, "n w"], num_genes: int, counts: bool
) -> Float[Array, "n genes"]:
    """What the encoder reads: dense, log-normalised (`counts`: the values are raw counts)."""
    return densify(columns, log_normalize(values) if counts else values, num_genes)
