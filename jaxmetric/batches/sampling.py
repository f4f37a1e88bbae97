"""Which cells each batch holds: a pure function of (seed, epoch), so that nothing has to be saved."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from jaxmetric.config import Config

Draw = Callable[[int], Int[np.ndarray, "steps batch"]]
LANES = 8  # parts of a batch with blocks of their own, so that each process reads only its part


def sampling_weights(
    labels: Int[np.ndarray, " n"], studies: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " n"]:
    """SCimilarity's weight of each cell: rare classes, and classes of rare studies, come more often.

    With studies, 1/log1p(n_class / 1e4) * 1/log1p(n_study / 1e6), clipped at twice the 99.9th
    percentile; without, 1 / n_class.
    """
    num_class = np.bincount(labels)[labels]
    if studies is None:
        return 1.0 / num_class
    num_study = np.bincount(studies)[studies]
    weights = 1.0 / np.log1p(num_class / 1e4) / np.log1p(num_study / 1e6)
    return np.minimum(weights, 2.0 * np.quantile(weights, 0.999))


def sampler(
    labels: Int[np.ndarray, " n"],
    studies: Int[np.ndarray, " n"] | None,
    config: Config,
    block: int = 1,
) -> Draw:
    """A function of the epoch's number that gives the row numbers of its batches.

    Rows are drawn one by one, or `block` neighbouring rows at a time, which are then dealt out over
    `config.shuffle_steps` batches: each row comes as often, but with rows from its neighbourhood.
    """
    draw = {"weighted": _weighted, "uniform": _uniform, "per_class": _per_class}[config.sampling]
    if config.sampling == "per_class":
        return draw(labels, config)
    if config.sampling == "weighted":
        draw = draw(sampling_weights(labels, studies), config, block)
    else:
        draw = draw(len(labels), config, block)
    return lambda epoch: _deal(draw(epoch), config, epoch) if block > 1 else draw(epoch)


def _weighted(weights: Float[np.ndarray, " n"], config: Config, block: int) -> Draw:
    """With replacement: a block by the sum of its weights, then rows of it, each by its weight."""
    upto = np.cumsum(weights / weights.sum())
    upto /= upto[-1]
    edges = np.append(0.0, upto[np.append(np.arange(block - 1, len(upto) - 1, block), -1)])

    def draw(epoch: int) -> Int[np.ndarray, "steps batch"]:
        generator = np.random.default_rng((config.seed, epoch))
        shape = config.steps_per_epoch, config.batch_size
        if block == 1:
            return upto.searchsorted(generator.random(shape), side="right")
        number = -(-math.prod(shape) // block)
        first = upto.searchsorted(generator.random(number), side="right") // block
        low, high = edges[first, None], edges[first + 1, None]
        at = low + (high - low) * generator.random((number, block))
        rows = upto.searchsorted(at, side="right").clip(None, len(upto) - 1)
        return rows.ravel()[: math.prod(shape)].reshape(shape)

    return draw


def _uniform(num_rows: int, config: Config, block: int) -> Draw:
    """Without replacement: all rows in a random order (of blocks), then all again in another."""
    per_epoch = config.steps_per_epoch * config.batch_size

    def one_pass(number: int) -> Int[np.ndarray, " n"]:
        order = np.random.default_rng((config.seed, number, 0)).permutation(-(-num_rows // block))
        rows = (order[:, None] * block + np.arange(block)).ravel()
        return rows[rows < num_rows]

    def draw(epoch: int) -> Int[np.ndarray, "steps batch"]:
        first, last = epoch * per_epoch // num_rows, ((epoch + 1) * per_epoch - 1) // num_rows
        rows = np.concatenate([one_pass(number) for number in range(first, last + 1)])
        start = epoch * per_epoch - first * num_rows
        return rows[start : start + per_epoch].reshape(config.steps_per_epoch, config.batch_size)

    return draw


def _per_class(labels: Int[np.ndarray, " n"], config: Config) -> Draw:
    """M rows of each class of a batch; classes and the rows of each in turn, in random orders."""
    m, members = config.cells_per_class, np.argsort(labels, kind="stable")
    classes, counts = np.unique(labels, return_counts=True)
    starts = np.cumsum(counts) - counts
    per_batch = config.batch_size // m

    def draw(epoch: int) -> Int[np.ndarray, "steps batch"]:
        generator = np.random.default_rng((config.seed, epoch))
        rounds = -(-per_batch // len(classes))
        keys = generator.random((config.steps_per_epoch, rounds, len(classes)))
        chosen = keys.argsort(-1).reshape(config.steps_per_epoch, -1)[:, :per_batch]
        rows = np.empty((*chosen.shape, m), np.int64)
        for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
            where = chosen == i
            wanted = m * int(where.sum())
            turns = [generator.permutation(count) for _ in range(-(-wanted // count))]
            if wanted:
                rows[where] = members[start + np.concatenate(turns)[:wanted]].reshape(-1, m)
        return rows.reshape(config.steps_per_epoch, config.batch_size)

    return draw


def _deal(
    rows: Int[np.ndarray, "steps batch"], config: Config, epoch: int
) -> Int[np.ndarray, "steps batch"]:
    """Shuffles the rows over every `shuffle_steps` batches, within each lane."""
    lanes = math.gcd(config.batch_size, LANES)
    generator = np.random.default_rng((config.seed, epoch, 1))
    dealt = []
    for first in range(0, len(rows), config.shuffle_steps):
        some = rows[first : first + config.shuffle_steps]
        by_lane = generator.permuted(some.reshape(lanes, -1), axis=1)
        dealt.append(by_lane.reshape(lanes, len(some), -1).swapaxes(0, 1).reshape(some.shape))
    return np.concatenate(dealt)
