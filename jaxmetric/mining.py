"""Distances between cells, and the miner: which triplets a batch of embeddings teaches from.

A pair (a, p) is an anchor and a positive: two cells of one label, of different studies where studies
are given. Its negatives are the cells n whose label is not related to the anchor's. With D the
distances, gap(a, p, n) = D[a, p] - D[a, n] + margin, and a negative with gap > 0 is *hard*: it stands
closer to the anchor than the positive and the margin allow. Each pair keeps one negative:

  semihard  one drawn uniformly from {n: 0 < gap < margin}, that is D[a, p] < D[a, n] < D[a, p] + margin
  random    one drawn uniformly from {n: 0 < gap}
  hardest   the one of largest gap, the nearest, if its gap > 0

These are SCimilarity's rules (Heimberg et al., Nature 638:1085, 2025). Other libraries mean other
things by "semihard": TripletMarginMiner of pytorch-metric-learning keeps every such n.
"""

import typing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxmetric.config import Metric, Selection

COMPARISONS = 2**20  # (pair, candidate) comparisons done at a time


class Triplets(NamedTuple):
    """The triplets mined from n cells, in fixed shapes.

    Attributes:
      negative: the negative of pair (anchor, positive), -1 where the pair gives no triplet.
      hard: per anchor, its (pair, negative) with gap > 0.
      viable: per anchor, its (pair, negative).
    """

    negative: Int[Array, "*batch n n"]
    hard: Int[Array, "*batch n"]
    viable: Int[Array, "*batch n"]

    @property
    def mask(self) -> Bool[Array, "*batch n n"]:
        """Which pairs give a triplet."""
        return self.negative >= 0

    @property
    def num_triplets(self):
        """Number of triplets."""
        return _total(self.mask.sum(-1))

    @property
    def num_hard(self):
        """Number of (pair, negative) with gap > 0."""
        return _total(self.hard)

    @property
    def num_viable(self):
        """Number of (pair, negative)."""
        return _total(self.viable)


def _total(counts):
    """Exact in int64 outside of jit; float32 inside, as the sum can pass the 2^31 of int32."""
    if isinstance(counts, jax.core.Tracer):
        return counts.astype(jnp.float32).sum(-1)
    return np.asarray(counts, np.int64).sum(-1)


def pairwise_distances(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, "m d"] | None = None,
    metric: Metric = "sqeuclidean",
) -> Float[Array, "n m"]:
    """Distance of every row of x to every row of y (default: x itself).

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, one matrix product, in float32 and full precision on every
    backend, seen from the first row of y: rows that lie close together keep their digits. Its root
    has a finite gradient, 0, for identical rows. Cosine distance is 1 - x.y / (|x| |y|); a row of zeros
    has cosine distance 1 to everything.
    """
    check_choice("metric", metric, Metric)
    x = jnp.asarray(x, jnp.float32)
    y = x if y is None else jnp.asarray(y, jnp.float32)
    if metric == "cosine":
        return jnp.maximum(1.0 - _dot(_unit(x), _unit(y)), 0.0)
    x, y = x - y[:1], y - y[:1]
    squared = (x**2).sum(-1)[:, None] + (y**2).sum(-1)[None, :] - 2.0 * _dot(x, y)
    squared = jnp.maximum(squared, 0.0)
    return squared if metric == "sqeuclidean" else _safe_sqrt(squared)


def mine_triplets(
    key: Key[Array, ""],
    z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    *,
    studies: Int[ArrayLike, " n"] | None = None,
    related: Bool[ArrayLike, "k k"] | None = None,
    margin: float = 0.05,
    selection: Selection = "semihard",
    metric: Metric = "sqeuclidean",
    both_orders: bool = False,
) -> Triplets:
    """Mines one negative for every pair of cells of one label.

    Args:
      key: random key of the draws; the same key gives the same triplets.
      z: embeddings.
      labels: label of each cell, in [0, k); a cell with a negative label takes no part.
      studies: study of each cell; given, anchor and positive come from different studies.
      related: related[i, j]: cells of label j are no negatives for anchors of label i (the same
        type, its ancestors and descendants). None: only the same label is related.
      margin: positive, in units of the metric.
      selection: the rule, see the module's head.
      metric: distance to mine on.
      both_orders: False: each pair once, the earlier cell is the anchor; True: in both orders.

    Raises:
      ValueError: for an unknown selection or metric, or shapes that do not fit.

    Method: cells are sorted by label, so that an anchor's positives are a run of the sorted order and
    the real pairs can be numbered; a loop takes them a few at a time and compares each with its row
    of distances. O(pairs * n) comparisons and O(n^2) memory, with nothing of size n^3.
    """
    check_choice("selection", selection, Selection)
    check_choice("metric", metric, Metric)
    _check_cells(z, labels, studies, related)
    z, labels = jnp.asarray(z), jnp.asarray(labels)
    n = z.shape[0]
    known = labels >= 0
    if related is None:
        allowed = labels[:, None] != labels[None, :]
    else:
        allowed = ~jnp.asarray(related)[labels][:, labels]
    allowed &= known[:, None] & known[None, :]
    distances = pairwise_distances(z, metric=metric)
    to_negative = jnp.where(allowed, distances, jnp.inf)
    nearest = to_negative.argmin(1)
    num_negatives = allowed.sum(1)

    order = jnp.argsort(labels, stable=True)
    in_order = labels[order]
    place = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n))
    last = jnp.searchsorted(in_order, labels, side="right")
    first = jnp.searchsorted(in_order, labels, side="left") if both_orders else place + 1
    ends = jnp.cumsum(jnp.where(known, last - first, 0))  # pairs of anchor 0, 1, ... end before

    study = None if studies is None else jnp.asarray(studies)
    seed = jax.random.bits(key, (), jnp.uint32)
    size = max(1, min(COMPARISONS // n, n * n))
    candidate = jnp.arange(n, dtype=jnp.uint32)

    def mine_some(i, carry: Triplets) -> Triplets:
        pair = i * size + jnp.arange(size)
        a = jnp.searchsorted(ends, pair, side="right").clip(max=n - 1)
        p = order[(last[a] - (ends[a] - pair)).clip(0, n - 1)]
        real = (pair < ends[-1]) & (a != p)
        if study is not None:
            real &= study[a] != study[p]
        gap = jnp.where(real, distances[a, p], -jnp.inf)[:, None] - to_negative[a] + margin
        hard = gap > 0
        num_hard = hard.sum(1)
        if selection == "hardest":
            chosen = jnp.where(num_hard > 0, nearest[a], -1)
        else:
            draw_from = hard & (gap < margin) if selection == "semihard" else hard
            priority = _mix(
                _mix(seed ^ (a * n + p).astype(jnp.uint32))[:, None] ^ candidate[None, :]
            )
            chosen = _argmax(priority, draw_from)
        return Triplets(
            carry.negative.at[jnp.where(real, a, n), p].set(chosen.astype(jnp.int32), mode="drop"),
            carry.hard.at[a].add(num_hard),
            carry.viable.at[a].add(jnp.where(real, num_negatives[a], 0)),
        )

    counts = jnp.zeros(n, jnp.int32)
    none = Triplets(jnp.full((n, n), -1, jnp.int32), counts, counts)
    return jax.lax.fori_loop(0, (ends[-1] + size - 1) // size, mine_some, none)


def triplet_indices(triplets: Triplets) -> np.ndarray:
    """The mined triplets as rows (anchor, positive, negative): an int array of shape (t, 3)."""
    negative = np.asarray(triplets.negative)
    anchor, positive = np.nonzero(negative >= 0)
    return np.stack([anchor, positive, negative[anchor, positive]], axis=1)


def _argmax(priority: UInt32[Array, "c n"], among: Bool[Array, "c n"]) -> Int[Array, " c"]:
    """The column of highest priority among those allowed, -1 where none is: two plain max-reductions,
    which compile to vector code where argmax does not."""
    best = jnp.where(among, priority, 0).max(1, keepdims=True)
    column = jnp.arange(priority.shape[1])[None, :]
    return jnp.where(among & (priority == best), column, -1).max(1)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A 32-bit integer hash (the finalizer of MurmurHash3): random priorities at 6 operations each."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    squared = (x**2).sum(-1, keepdims=True)
    return jnp.where(squared > 0, x * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def check_choice(name: str, value: object, literal) -> None:
    """Raises a ValueError unless the value is one of the Literal's."""
    choices = typing.get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}.")


def _check_cells(z, labels, studies, related) -> None:
    shape = np.shape(z)
    if len(shape) != 2 or shape[0] < 1:
        raise ValueError(f"z must be (cells, dimensions) with at least 1 cell, but is {shape}.")
    for name, values in (("labels", labels), ("studies", studies)):
        if values is None:
            continue
        if np.shape(values) != shape[:1]:
            raise ValueError(
                f"{name} must have shape {shape[:1]}, one per row of z, but has {np.shape(values)}."
            )
        if not jnp.issubdtype(jnp.result_type(values), jnp.integer):
            raise ValueError(f"{name} must be integers, but are {jnp.result_type(values)}.")
    if related is None:
        return
    k = np.shape(related)[0] if np.ndim(related) else 0
    if np.shape(related) != (k, k):
        raise ValueError(f"related must be (labels, labels), but has shape {np.shape(related)}.")
    if not isinstance(labels, jax.core.Tracer) and np.max(labels) >= k:
        raise ValueError(
            f"labels must be less than {k}, the size of related, but reach {np.max(labels)}."
        )
