"""Rows of booleans packed into words of 32 bits: to count them, and to find the r-th that is true."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped, UInt32

WORD = 32


def pad(x: Shaped[Array, "n m"], value) -> Shaped[Array, "n p"]:
    """Columns of a value added up to whole words: what is computed from whole words packs fast."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % WORD)), constant_values=value)


def pack(mask: Bool[Array, "n m"]) -> UInt32[Array, "n w"]:
    """Bit b of word i is column b * w + i: neighbours lie in neighbouring words, as vectors want it."""
    bits = pad(mask, False).reshape(len(mask), WORD, -1).astype(jnp.uint32)
    place = jnp.arange(WORD, dtype=jnp.uint32)[None, :, None]
    return (bits << place).sum(1, dtype=jnp.uint32)


def count(words: UInt32[Array, "*s"]) -> Int[Array, "*s"]:
    """Bits set in each word."""
    return jax.lax.population_count(words).astype(jnp.int32)


def column(words: UInt32[Array, "n w"], rank: Int[Array, " n"]) -> Int[Array, " n"]:
    """The column of each row's r-th true value, r counted from 0 in the order of the words."""
    ends = jnp.cumsum(count(words), axis=1)
    word = (ends <= rank[:, None]).sum(1).clip(max=words.shape[1] - 1)[:, None]
    start = jnp.take_along_axis(ends - count(words), word, axis=1)[:, 0]
    bit = bit_of_rank(jnp.take_along_axis(words, word, axis=1)[:, 0], rank - start)
    return bit * words.shape[1] + word[:, 0]


def bit_of_rank(word: UInt32[Array, " n"], rank: Int[Array, " n"]) -> Int[Array, " n"]:
    """The place of each word's r-th set bit: as many places as have no more than r bits up to them."""
    up_to = (jnp.uint32(2) << jnp.arange(WORD, dtype=jnp.uint32)) - 1
    return (count(word[:, None] & up_to[None, :]) <= rank[:, None]).sum(1)
