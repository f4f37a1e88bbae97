"""Rows of booleans packed into words of 32 bits: to count them, and to find the r-th that is true."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped, UInt32

WORD = 32


def pad(x: Shaped[Array, "*n m"], value) -> Shaped[Array, "*n p"]:
    """The last axis padded with a value to whole words: what is computed from whole words packs fast."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % WORD)], constant_values=value)


def pack(mask: Bool[Array, "n m"]) -> UInt32[Array, "n w"]:
    """Bit b of word i is column b * w + i: neighbours lie in neighbouring words, as vectors want it."""
    bits = pad(mask, False).reshape(len(mask), WORD, -1).astype(jnp.uint32)
    place = jnp.arange(WORD, dtype=jnp.uint32)[None, :, None]
    return (bits << place).sum(1, dtype=jnp.uint32)


def pack_columns(
    test: Callable[..., Bool[Array, "n w"]], *columns: Int[Array, " m"]
) -> UInt32[Array, "n w"]:
    """pack(test(columns)), of a test that compares rows with some columns, given as (1, w).

    One bit of all words at a time: a mask that is nowhere else is never written, and vectors hold words.
    """
    by_bit = [pad(column, -1).reshape(WORD, 1, -1) for column in columns]
    words = [test(*(column[b] for column in by_bit)).astype(jnp.uint32) << b for b in range(WORD)]
    return functools.reduce(jnp.bitwise_or, words)


def unpack(words: UInt32[Array, "n w"]) -> Bool[Array, "n p"]:
    """The mask that was packed, padded to whole words."""
    place = jnp.arange(WORD, dtype=jnp.uint32)[None, :, None]
    return (words[:, None, :] >> place & 1).astype(bool).reshape(len(words), -1)


def right_of(column: Int[Array, " n"], w: int) -> UInt32[Array, "n w"]:
    """Packed rows that are true at j > column: in word k, the bits b > (column - k) / w."""
    low = (column[:, None] - jnp.arange(w)[None, :]) // w + 1
    return jnp.uint32(2**WORD - 1) << low.clip(0).astype(jnp.uint32)


def one(column: Int[Array, " n"], w: int) -> UInt32[Array, "n w"]:
    """Packed rows that are true at j = column."""
    bit = jnp.uint32(1) << (column // w).astype(jnp.uint32)
    return jnp.where(column[:, None] % w == jnp.arange(w)[None, :], bit[:, None], jnp.uint32(0))


def count(words: UInt32[Array, "*s"]) -> Int[Array, "*s"]:
    """Bits set in each word."""
    return jax.lax.population_count(words).astype(jnp.int32)


def column(words: UInt32[Array, "n w"], rank: Int[Array, " n"]) -> Int[Array, " n"]:
    """The column of each row's r-th true value, r counted from 0 in an order of its own.

    A tree over the words holds the counts of ever larger groups; each step down takes the first half of
    a group, or the second with the first's count off the rank.
    """
    rows, w = jnp.arange(len(words)), words.shape[1]
    tree = [jnp.pad(count(words), ((0, 0), (0, (1 << (w - 1).bit_length()) - w)))]
    while (half := tree[-1].shape[1] // 2) > 0:
        tree.append(tree[-1][:, :half] + tree[-1][:, half:])
    word = jnp.zeros_like(rank)
    for groups in reversed(tree[:-1]):
        first = _at(groups, rows, word)
        word += jnp.where(rank >= first, groups.shape[1] // 2, 0)
        rank -= jnp.where(rank >= first, first, 0)
    return bit_of_rank(_at(words, rows, word), rank) * w + word


def _at(x: Shaped[Array, "n w"], rows: Int[Array, " n"], columns: Int[Array, " n"]):
    return x.at[rows, columns].get(mode="promise_in_bounds")


def bit_of_rank(word: UInt32[Array, " n"], rank: Int[Array, " n"]) -> Int[Array, " n"]:
    """The place of each word's r-th set bit: as many places as have no more than r bits up to them."""
    up_to = (jnp.uint32(2) << jnp.arange(WORD, dtype=jnp.uint32)) - 1
    return (count(word[:, None] & up_to[None, :]) <= rank[:, None]).sum(1)
