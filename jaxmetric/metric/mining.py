"""The miner: which triplets a batch of embeddings teaches from.

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

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Key, Real, UInt32

from jaxmetric.config import Metric, Selection
from jaxmetric.metric import bits
from jaxmetric.metric.distances import check_choice, pairwise_distances
from jaxmetric.sharding import by_backend, check_divides, split_rows

# (pair, candidate) comparisons done at a time: what a CPU's caches hold, what fills an accelerator
COMPARISONS, ON_ACCELERATOR = 2**20, 2**26


class Triplets(NamedTuple):
    """The triplets mined from n cells, in fixed shapes.

    Attributes:
      negative: the negative of pair (anchor, positive), -1 where the pair gives no triplet.
      hard: per anchor, its (pair, negative) with gap > 0.
      viable: per anchor, its (pair, negative).
    """

    negative: Int[Array, "*batch n m"]
    hard: Int[Array, "*batch n"]
    viable: Int[Array, "*batch n"]

    @property
    def mask(self) -> Bool[Array, "*batch n m"]:
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


def mine_triplets(
    key: Key[Array, ""],
    z: Float[ArrayLike, "n d"],
    labels: Integer[ArrayLike, " n"] | None = None,
    *,
    studies: Integer[ArrayLike, " n"] | None = None,
    related: Bool[ArrayLike, "k k"] | None = None,
    positives: Bool[ArrayLike, "n m"] | None = None,
    negatives: Bool[ArrayLike, "n m"] | None = None,
    reference: Float[ArrayLike, "m d"] | None = None,
    reference_labels: Integer[ArrayLike, " m"] | None = None,
    reference_studies: Integer[ArrayLike, " m"] | None = None,
    margin: Real[ArrayLike, ""] = 0.05,
    selection: Selection = "semihard",
    metric: Metric = "sqeuclidean",
    both_orders: bool = False,
    mesh: Mesh | None = None,
) -> Triplets:
    """Mines one negative for every pair of an anchor and a positive.

    Args:
      key: random key of the draws; the same key gives the same triplets.
      z: embeddings: the anchors, and without `reference` the candidates too.
      labels: label of each cell, in [0, k); a cell with a negative label takes no part.
      studies: study of each cell; given, anchor and positive come from different studies.
      related: related[i, j]: cells of label j are no negatives for anchors of label i (its
        ancestors and descendants). Cells of the same label never are. None: no others.
      positives: positives[a, p]: p is a positive of a. None: cells of one label, by study.
      negatives: negatives[a, n]: n is a negative of a. None: cells of unrelated labels.
      reference: candidates for positives and negatives, such as a memory of earlier embeddings.
      reference_labels: label of each candidate.
      reference_studies: study of each candidate.
      margin: positive, in units of the metric.
      selection: the rule, see the module's head.
      metric: distance to mine on.
      both_orders: False: each pair of the batch once, the earlier cell is the anchor; True: in both
        orders. With a reference every anchor meets every candidate.
      mesh: devices that share the anchors, of one axis; each mines its own against all candidates, and
        the result is split by anchor. The triplets are those of one device, but where distances
        computed in another order of sums tie with a limit of the rule. None: left to the compiler.

    Returns:
      The triplets, in shapes that do not depend on how many there are.

    Raises:
      ValueError: for an unknown selection or metric, or shapes that do not fit.

    Method: the pairs are numbered, and a loop compares some at a time with their anchors' rows of
    distances: O(pairs * m) comparisons, O(n * m) memory, nothing of size n^3. The negatives that the
    rule allows are packed into bits, and counting bits finds the one of a rank drawn at random.
    """
    check_choice("selection", selection, Selection)
    check_choice("metric", metric, Metric)
    in_batch = reference is None
    if in_batch:
        reference, reference_labels, reference_studies = z, labels, studies
    _check_cells("z", z, labels, studies, related)
    _check_cells("reference", reference, reference_labels, reference_studies, related)
    n, m = len(z), len(reference)
    _check_masks(n, m, labels, reference_labels, positives, negatives)

    anchors = _Anchors(jnp.arange(n), z, labels, studies, positives, negatives)
    candidates = _Candidates(reference, reference_labels, reference_studies, related)
    anchors, candidates = jax.tree.map(_as_signed, (anchors, candidates))
    excluded = "none" if not in_batch else "itself" if both_orders else "earlier"
    mine = functools.partial(_mine, excluded=excluded, selection=selection, metric=metric)
    if mesh is not None:
        check_divides(n, mesh, "the number of anchors")
        mine = split_rows(mine, mesh)
    seed, margin = jax.random.bits(key, (2,), "uint32"), jnp.asarray(margin, jnp.float32)
    return mine(anchors, (seed, margin, candidates))


def _as_signed(x: ArrayLike) -> Array:
    """An array; of unsigned integers, of which -1 is none, a signed one."""
    x = jnp.asarray(x)
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.unsignedinteger) else x


class _Anchors(NamedTuple):
    """What there is a row of for each anchor, `index` its number in the batch; None: not given."""

    index: Int[Array, " n"]
    z: Float[Array, "n d"]
    labels: Any
    studies: Integer[Array, " n"] | None
    positives: Bool[Array, "n m"] | None
    negatives: Bool[Array, "n m"] | None


class _Candidates(NamedTuple):
    """What there is of all candidates, for every anchor, and what labels are related; None: not given."""

    z: Float[Array, "m d"]
    labels: Any
    studies: Integer[Array, " m"] | None
    related: Bool[Array, "k k"] | None


def _mine(
    anchors: _Anchors,
    shared: tuple[UInt32[Array, "2"], Float[Array, ""], _Candidates],
    *,
    excluded: Literal["none", "itself", "earlier"],
    selection: Selection,
    metric: Metric,
) -> Triplets:
    """Mines the triplets of these anchors, which may be a part of the batch.

    `shared`: the seed of the draws, the margin, and the candidates. `excluded`: cells of the batch that
    are no positives of an anchor by their place in it.
    """
    seed, margin, candidates = shared
    m = len(candidates.z)
    positives = _positives(anchors, candidates)
    n, w = positives.shape
    if excluded == "itself":
        positives &= ~bits.one(anchors.index, w)
    elif excluded == "earlier":
        positives &= bits.right_of(anchors.index, w)
    negatives, row = _negatives(anchors, candidates)
    if excluded != "none" and anchors.negatives is not None:
        negatives &= ~bits.one(anchors.index, w)
    whole_words = jnp.pad(candidates.z, ((0, -m % bits.WORD), (0, 0)))
    distances = pairwise_distances(anchors.z, whole_words, metric)
    nearest = _nearest(distances, negatives[row])
    pairs = bits.count(positives).sum(1)
    ends = jnp.cumsum(pairs)  # the pairs of anchors 0, 1, ... end before
    size = max(1, min(by_backend(COMPARISONS, ON_ACCELERATOR) // m, n * m))

    def mine_some(i, carry: Triplets) -> Triplets:
        pair = i * size + jnp.arange(size)
        real = pair < ends[-1]
        a = _count_up_to(ends, pair).clip(max=n - 1)
        p = bits.column(positives[a], pair - (ends - pairs)[a])
        to_positive = jnp.where(real, distances[a, p], -jnp.inf)[:, None]
        to_candidate = distances.at[a].get(mode="promise_in_bounds")
        hard = bits.pack(to_candidate < to_positive + margin) & negatives[row[a]]
        num_hard = bits.count(hard).sum(1)
        if selection == "hardest":
            chosen = jnp.where(num_hard > 0, nearest[a], -1)
        else:
            farther = bits.pack(to_candidate > to_positive)
            allowed = hard & farther if selection == "semihard" else hard
            chosen = _draw(seed, anchors.index[a], p, allowed)
        return Triplets(
            carry.negative.at[jnp.where(real, a, n), p].set(chosen.astype(jnp.int32), mode="drop"),
            carry.hard.at[a].add(num_hard),
            carry.viable,
        )

    viable = pairs * bits.count(negatives).sum(1)[row]
    none = Triplets(jnp.full((n, m), -1, jnp.int32), jnp.zeros(n, jnp.int32), viable)
    return jax.lax.fori_loop(0, (ends[-1] + size - 1) // size, mine_some, none)


def _count_up_to(ordered: Int[Array, " n"], x: Int[Array, " c"]) -> Int[Array, " c"]:
    """How many of the ordered numbers are at most x: by blocks of sqrt(n), then within x's block.

    Comparisons alone: a binary search is a chain of gathers, which XLA multiplies as it fuses them.
    """
    side = math.isqrt(len(ordered)) + 1
    blocks = jnp.pad(ordered, (0, side**2 - len(ordered)), mode="edge").reshape(side, side)
    block = (blocks[None, :, -1] <= x[:, None]).sum(1)
    return block * side + (blocks.at[block].get(mode="clip") <= x[:, None]).sum(1)


def _draw(
    seed: UInt32[Array, "2"],
    a: Int[Array, " c"],
    p: Int[Array, " c"],
    allowed: UInt32[Array, "c w"],
) -> Int[Array, " c"]:
    """One of the allowed columns of each pair, drawn uniformly; -1 where there is none."""
    drawn = _mix(_mix(a.astype(jnp.uint32) ^ seed[0]) + (p.astype(jnp.uint32) ^ seed[1]))
    uniform = (drawn >> 8).astype(jnp.float32) * 2.0**-24
    found = bits.count(allowed).sum(1)
    rank = jnp.minimum((uniform * found).astype(jnp.int32), found - 1)
    return jnp.where(found > 0, bits.column(allowed, rank), -1)


def _mix(x: UInt32[Array, " c"]) -> UInt32[Array, " c"]:
    """A hash of 32 bits (C. Wellons' lowbias32), many times cheaper here than a key for each pair."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _positives(anchors: _Anchors, candidates: _Candidates) -> UInt32[Array, "n w"]:
    """Packed: the given mask; or the candidates of the anchor's label and, if given, another study."""
    if anchors.positives is not None:
        return bits.pack(anchors.positives)
    a, c = anchors.labels[:, None], candidates.labels
    if anchors.studies is None or candidates.studies is None:
        return bits.pack_columns(lambda c: (a == c) & (a >= 0), c)
    s, t = anchors.studies[:, None], candidates.studies
    return bits.pack_columns(lambda c, t: (a == c) & (a >= 0) & (s != t), c, t)


def _negatives(
    anchors: _Anchors, candidates: _Candidates
) -> tuple[UInt32[Array, "r w"], Int[Array, " n"]]:
    """Packed: the given mask, or the candidates of labels unrelated to the anchor's; and anchors' rows.

    With `related` a row for each label, and a last one, for anchors without label: none.
    """
    itself = jnp.arange(len(anchors.z))
    if anchors.negatives is not None:
        return bits.pack(anchors.negatives), itself
    a, c = anchors.labels, candidates.labels
    if candidates.related is None:
        a = a[:, None]
        return bits.pack_columns(lambda c: (a != c) & (a >= 0) & (c >= 0), c), itself
    related, c = candidates.related, bits.pad(c, -1)
    unrelated = ~(related | jnp.eye(len(related), dtype=bool))
    words = bits.pack(unrelated[:, c]) & bits.pack(c[None, :] >= 0)
    return jnp.pad(words, ((0, 1), (0, 0))), jnp.where(a >= 0, a, len(related))


def _nearest(distances: Float[Array, "n p"], allowed: UInt32[Array, "n w"]) -> Int[Array, " n"]:
    """The allowed column of least distance in each row: the least of each word first, then its bit.

    One pass along the words, which compiles to vector code; an argmin over the row does not.
    """
    n, w = allowed.shape
    by_word = jnp.where(bits.unpack(allowed), distances, jnp.inf).reshape(n, bits.WORD, w)
    word = by_word.min(1).argmin(1)
    bit = by_word[jnp.arange(n), :, word].argmin(1)
    return bit * w + word


def triplet_indices(triplets: Triplets) -> np.ndarray:
    """The mined triplets as rows (anchor, positive, negative): an int array of shape (t, 3)."""
    negative = np.asarray(triplets.negative)
    anchor, positive = np.nonzero(negative >= 0)
    return np.stack([anchor, positive, negative[anchor, positive]], axis=1)


def _check_cells(name: str, z, labels, studies, related) -> None:
    shape, prefix = np.shape(z), "" if name == "z" else f"{name}_"
    if len(shape) != 2 or shape[0] < 1:
        raise ValueError(
            f"{name} must be (cells, dimensions) with at least 1 cell, but is {shape}."
        )
    for what, values in ((f"{prefix}labels", labels), (f"{prefix}studies", studies)):
        if values is None:
            continue
        if np.shape(values) != shape[:1]:
            raise ValueError(
                f"{what} must have shape {shape[:1]}, one per row of {name}, but has "
                f"{np.shape(values)}."
            )
        if not jnp.issubdtype(jnp.result_type(values), jnp.integer):
            raise ValueError(f"{what} must be integers, but are {jnp.result_type(values)}.")
    if related is None or labels is None:
        return
    k = np.shape(related)[0] if np.ndim(related) else 0
    if np.shape(related) != (k, k):
        raise ValueError(f"related must be (labels, labels), but has shape {np.shape(related)}.")
    if not isinstance(labels, jax.core.Tracer) and np.max(labels) >= k:
        raise ValueError(
            f"{prefix}labels must be less than {k}, the size of related, but reach {np.max(labels)}."
        )


def _check_masks(n: int, m: int, labels, reference_labels, positives, negatives) -> None:
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask is None and labels is None:
            raise ValueError(f"{name} must be given where there are no labels.")
        if mask is None and reference_labels is None:
            raise ValueError("reference_labels must be given with reference and labels.")
        if mask is not None and (np.shape(mask), jnp.result_type(mask)) != ((n, m), jnp.bool_):
            raise ValueError(
                f"{name} must be boolean of shape {(n, m)}, (anchors, candidates), but is "
                f"{jnp.result_type(mask)} of shape {np.shape(mask)}."
            )
