"""Packed cells -> dense, log-normalised expression, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Shaped

from jaxmetric.batches.batches import Batch

TARGET_SUM = 1e4


def expression(batch: Batch, num_genes: int, counts: bool) -> Float[Array, "n genes"]:
    """What the encoder reads; each device densifies its own share of the batch.

    With `counts`, log1p of counts per 10,000 of each cell: scanpy's `normalize_total(target_sum=1e4)`
    and `log1p`; a cell without counts stays zero. Zeros stay zeros, so values are normalised packed.
    """
    num_shares = batch.columns.shape[0]
    scale = TARGET_SUM / jnp.where(batch.totals > 0, batch.totals, 1.0)

    def one_share(columns, values, lengths, scale):
        row = row_of_value(lengths, len(columns))
        values = values.astype(jnp.float32)
        if counts:
            values = jnp.log1p(values * scale.at[row].get(mode="fill", fill_value=0.0))
        return densify(row, columns, values, len(lengths), num_genes)

    shares = (x.reshape(num_shares, -1) for x in (batch.lengths, scale))
    x = jax.vmap(one_share)(batch.columns, batch.values, *shares)
    return x.reshape(-1, num_genes)


def row_of_value(lengths: Int[Array, " n"], num_values: int) -> Int[Array, " c"]:
    """The row of each value of rows that lie end to end; n for those after the last."""
    rows, rest = jnp.arange(len(lengths) + 1), num_values - lengths.sum()
    return jnp.repeat(rows, jnp.append(lengths, rest), total_repeat_length=num_values)


def densify(
    row: Int[Array, " c"],
    column: Integer[Array, " c"],
    value: Shaped[Array, " c"],
    num_rows: int,
    num_columns: int,
) -> Shaped[Array, "n g"]:
    """The dense matrix of values at their places, of which no two are the same; others are left out."""
    empty = jnp.zeros((num_rows, num_columns), value.dtype)
    return empty.at[row, column.astype(jnp.int32)].set(value, mode="drop", unique_indices=True)
