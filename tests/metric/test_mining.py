import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from conftest import DEVICES, recorded, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distances, mine, triplet_losses

import jaxmetric as jm
from jaxmetric.metric import bits
from jaxmetric.shapes import filled
from jaxmetric.sharding import by_cell, cell_mesh, replicated

LONGEST_RECORD = 333
SELECTIONS = ("semihard", "hardest", "random")
KINDS = ((jnp.float32, True), (jnp.float32, False), (jnp.bfloat16, True))  # a program each


@functools.cache
def miner(**options):
    return jax.jit(functools.partial(jm.mine_triplets, **options))


def unit_rows(generator, n, d=8):
    z = generator.normal(size=(n, d)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("which", ["any", "cross"])
@pytest.mark.parametrize("number", range(6))
def test_mines_what_the_reference_mined(number, which, selection):
    """Recorded from scimilarity 0.4.1; float32 there and here, and no tie is close to a threshold."""
    record = recorded(f"triplets_{number}_{which}.npz")
    z, labels = record["embeddings"], record["labels"].astype(np.int32)
    studies = record["studies"].astype(np.int32) if which == "cross" else None
    z_filled, labels_filled, studies_filled = (  # with cells without label: one shape
        x if x is None else filled(x, LONGEST_RECORD, -1) for x in (z, labels, studies)
    )
    related = recorded("ontology_matrix.npz")["related"]
    margin = float(record["margin"])
    triplets = miner(selection=selection)(
        jax.random.key(number),
        z_filled,
        labels_filled,
        studies=studies_filled,
        related=related,
        margin=margin,
    )
    assert triplets.num_hard == record[f"{selection}_num_hard"]
    assert triplets.num_viable == record[f"{selection}_num_viable"]
    expected = record[f"{selection}_triplets"]
    if (expected == 0).all():  # how the reference says that there is none
        assert triplets.num_triplets == 0
        return
    found = jm.triplet_indices(triplets)
    assert {tuple(t) for t in found[:, :2]} == {tuple(t) for t in expected[:, :2]}
    if selection == "hardest":
        assert {tuple(t) for t in found} == {tuple(t) for t in expected}
    a, p, n = found.T
    D = scipy.spatial.distance.cdist(z, z, "sqeuclidean")
    gap = D[a, p] - D[a, n] + margin
    assert not related[labels[a], labels[n]].any()
    assert (gap > 0).all()
    assert selection != "semihard" or (gap < margin).all()


@st.composite
def batches(draw):
    """Embeddings on a coarse grid, so that ties and duplicates are common and distances are exact.

    Cells past the drawn number have no label: one shape, one compilation.
    """
    n, k = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    precision, with_studies = draw(st.sampled_from(KINDS))
    z = jnp.asarray(generator.integers(-2, 3, (60, 3)) / 2, precision)
    labels = np.where(np.arange(60) < n, generator.integers(-1, k, 60), -1).astype(np.int32)
    studies = generator.integers(0, 3, 60).astype(np.int32) if with_studies else None
    related = generator.random((5, 5)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return z, labels, studies, related | related.T | np.eye(5, dtype=bool)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("both_orders", [False, True])
@settings(max_examples=25, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_mines_what_the_loops_mine(selection, both_orders, batch, seed):
    z, labels, studies, related = batch
    options = {"margin": 0.5, "selection": selection, "both_orders": both_orders}
    triplets = miner(**options)(jax.random.key(seed), z, labels, studies=studies, related=related)
    allowed, num_hard, num_viable = mine(
        distances(z, "sqeuclidean"), labels, studies, related, 0.5, selection, both_orders
    )
    found = {(a, p): n for a, p, n in jm.triplet_indices(triplets).tolist()}
    assert found.keys() == allowed.keys()
    assert all(found[pair] in allowed[pair] for pair in found)
    assert (triplets.num_hard, triplets.num_viable) == (num_hard, num_viable)
    assert triplets.num_triplets == len(allowed)
    losses = np.asarray(jm.triplet_losses(z, triplets, margin=0.5, metric="sqeuclidean"))
    rows = jm.triplet_indices(triplets)
    expected = triplet_losses(distances(z, "sqeuclidean"), rows, 0.5)
    np.testing.assert_array_equal(losses[rows[:, 0], rows[:, 1]], np.float32(expected))


def masks_of(labels, studies, related, other_labels, other_studies):
    """Which cells are positives and which negatives of which, one pair of cells at a time."""
    positives, negatives = np.zeros((2, len(labels), len(other_labels)), bool)
    for i, label in enumerate(labels):
        for j, other in enumerate(other_labels):
            across = studies is None or studies[i] != other_studies[j]
            positives[i, j] = label >= 0 and label == other and across
            negatives[i, j] = label >= 0 and other >= 0 and not related[label, other]
    return positives, negatives


@pytest.mark.parametrize(("selection", "both_orders"), [("semihard", True), ("hardest", False)])
@settings(max_examples=12, deadline=None)
@given(batch=batches())
def test_explicit_masks_mine_what_the_labels_that_they_stand_for_mine(
    selection, both_orders, batch
):
    z, labels, studies, related = batch
    run = miner(margin=0.5, selection=selection, both_orders=both_orders)
    positives, negatives = masks_of(labels, studies, related, labels, studies)
    by_mask = run(jax.random.key(0), z, positives=positives, negatives=negatives)
    by_label = run(jax.random.key(0), z, labels, studies=studies, related=related)
    jax.tree.map(np.testing.assert_array_equal, by_mask, by_label)
    one = run(jax.random.key(0), z, labels, studies=studies, negatives=negatives)
    other = run(jax.random.key(0), z, labels, positives=positives, related=related)
    jax.tree.map(np.testing.assert_array_equal, one, by_label)
    jax.tree.map(np.testing.assert_array_equal, other, by_label)


def test_a_relation_that_is_no_function_of_labels():
    """Cell 0 has cells 1 and 2 as positives, and only cell 4 as a negative; cell 1 has neither."""
    z = np.float32([[0, 0], [1, 0], [0, 1], [0.1, 0], [0.2, 0]])
    positives, negatives = np.zeros((2, 5, 5), bool)
    positives[0, [0, 1, 2]], negatives[0, [0, 4]] = True, True
    triplets = miner(selection="hardest", margin=0.5)(
        jax.random.key(0), z, positives=positives, negatives=negatives
    )
    assert jm.triplet_indices(triplets).tolist() == [[0, 1, 4], [0, 2, 4]]
    assert (triplets.num_hard, triplets.num_viable) == (2, 2)


@pytest.mark.parametrize("with_related", [True, False])
def test_cells_without_label_take_no_part_where_only_positives_are_given(with_related):
    labels = np.int32([0, -1, 1, -2, 1])
    related = np.zeros((2, 2), bool) if with_related else None
    triplets = miner(selection="random", margin=9.0)(
        jax.random.key(0), np.eye(5, dtype=np.float32), labels,
        related=related, positives=np.ones((5, 5), bool),
    )  # fmt: skip
    assert (
        triplets.num_viable == 4 * 2 + 2 * 1
    )  # cell 0 with the next four, cell 2 with the next two
    assert (np.asarray(triplets.negative)[[1, 3]] == -1).all()
    assert set(jm.triplet_indices(triplets)[:, 2]) <= {0, 2, 4}


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_packed_diagonals_are_numpys(n):
    mask = np.random.default_rng(n).random((n, n)) < 0.5
    cells, width = jnp.arange(n), -(-n // 32)
    one, right_of, pack = (
        jax.jit(f)
        for f in (
            lambda: bits.unpack(bits.one(cells, width)),
            lambda: bits.unpack(bits.right_of(cells, width)),
            lambda: bits.unpack(bits.pack(jnp.asarray(mask))),
        )
    )
    for found, expected in (
        (one, np.eye(n)),
        (right_of, np.triu(np.ones((n, n)), 1)),
        (pack, mask),
    ):
        np.testing.assert_array_equal(np.asarray(found())[:, :n], expected)


@pytest.mark.parametrize("selection", SELECTIONS)
@settings(max_examples=15, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_mines_from_a_reference_what_the_loops_mine(selection, batch, seed):
    """The first 20 cells are anchors, the other 40 a memory; every anchor meets every candidate."""
    z, labels, studies, related = batch
    (z, memory), (y, known) = (z[:20], z[20:]), np.split(labels, [20])
    s, there = (None, None) if studies is None else np.split(studies, [20])
    options = {"studies": s, "related": related, "reference": memory}
    options |= {"reference_labels": known, "reference_studies": there}
    triplets = miner(margin=0.5, selection=selection)(jax.random.key(seed), z, y, **options)
    D = ((np.float64(z)[:, None] - np.float64(memory)[None]) ** 2).sum(-1)
    positives, negatives = masks_of(y, s, related, known, there)
    expected, num_hard = {}, 0
    for a, p in np.argwhere(positives):
        gap = {n: D[a, p] - D[a, n] + 0.5 for n in np.flatnonzero(negatives[a])}
        hard = {n for n in gap if gap[n] > 0}
        num_hard += len(hard)
        if selection == "semihard":
            hard = {n for n in hard if gap[n] < 0.5}
        if selection == "hardest":
            hard = {n for n in hard if gap[n] == max(gap.values())}
        if hard:
            expected[a, p] = hard
    found = {(a, p): n for a, p, n in jm.triplet_indices(triplets).tolist()}
    assert found.keys() == expected.keys()
    assert all(found[pair] in expected[pair] for pair in found)
    assert triplets.num_hard == num_hard
    assert triplets.num_viable == (positives.sum(1) * negatives.sum(1)).sum()
    losses = jm.triplet_losses(z, triplets, reference=memory, margin=0.5, metric="sqeuclidean")
    for (a, p), n in found.items():
        assert losses[a, p] == pytest.approx(max(0.0, D[a, p] - D[a, n] + 0.5))
    assert (np.asarray(losses) > 0).sum() <= len(found)


def test_a_stack_of_batches_under_vmap_is_each_batch_by_itself():
    generator = np.random.default_rng(0)
    z = np.stack([unit_rows(generator, 40) for _ in range(3)])
    labels = np.stack([generator.integers(0, k, 40) for k in (1, 3, 9)]).astype(np.int32)
    mine = functools.partial(jm.mine_triplets, margin=0.3)
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(mine))(keys, z, labels)
    for i in range(3):
        alone = jax.jit(mine)(keys[i], z[i], labels[i])
        np.testing.assert_array_equal(stacked.negative[i], alone.negative)
        np.testing.assert_array_equal(stacked.hard[i], alone.hard)


@pytest.mark.parametrize(("count", "both_orders"), [(2, False), (8, True)])
def test_devices_share_the_anchors_and_the_triplets_are_those_of_one(count, both_orders):
    """Distances on a grid are exact, so that none of them is a near tie."""
    generator = np.random.default_rng(0)
    z = generator.integers(-2, 3, (80, 3)).astype(np.float32) / 2
    labels = generator.integers(-1, 4, 80).astype(np.int32)
    options = {"studies": generator.integers(0, 3, 80).astype(np.int32)}
    options["related"] = np.eye(4, dtype=bool)
    mesh = cell_mesh(DEVICES[:count])
    mine = functools.partial(jm.mine_triplets, margin=0.5, both_orders=both_orders)
    split = jax.jit(functools.partial(mine, mesh=mesh))
    place = by_cell(mesh), replicated(mesh)
    found = split(
        jax.device_put(jax.random.key(0), place[1]),
        *jax.device_put((z, labels), place[0]),
        studies=jax.device_put(options["studies"], place[0]),
        related=jax.device_put(options["related"], place[1]),
    )
    expected = jax.jit(mine)(jax.random.key(0), z, labels, **options)
    assert found.negative.sharding.is_equivalent_to(place[0], 2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match=f"anchors must be a multiple .* {count}, but is 79"):
        mine(jax.random.key(0), z[:79], labels[:79], mesh=mesh)


def test_unsigned_labels_are_the_same_labels():
    generator = np.random.default_rng(0)
    z, labels = unit_rows(generator, 50), generator.integers(0, 4, 50)
    run = miner(margin=0.3, selection="random")
    one, other = (run(jax.random.key(0), z, labels.astype(kind)) for kind in (np.int32, np.uint8))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_half_precision_embeddings_are_mined_as_the_single_ones_they_are():
    generator = np.random.default_rng(0)
    z = jnp.asarray(unit_rows(generator, 50), jnp.bfloat16)
    labels = generator.integers(0, 4, 50).astype(np.int32)
    run = miner(margin=0.3, selection="hardest")
    half, single = (run(jax.random.key(0), x, labels) for x in (z, z.astype(jnp.float32)))
    jax.tree.map(np.testing.assert_array_equal, half, single)
    expected = scipy.spatial.distance.cdist(*2 * [np.float64(z)], "sqeuclidean")
    np.testing.assert_allclose(jm.pairwise_distances(z), expected, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_a_batch_of_one_or_two_cells_gives_no_triplet(n):
    labels = np.zeros(n, np.int32)
    triplets = miner(margin=0.5)(jax.random.key(0), np.ones((n, 3), np.float32), labels)
    assert (triplets.num_triplets, triplets.num_hard, triplets.num_viable) == (0, 0, 0)


def test_random_choices_are_uniform_and_independent():
    """2000 draws of 2 pairs with 6 allowed negatives each: chi-square over cells and over pairs."""
    z = np.float32([[0, 0], [1, 0], [0, 0], [1, 0]] + [[0, 0.5]] * 6)
    labels = np.int32([0, 0, 1, 1] + [2] * 6)
    related = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    mine_many = jax.jit(
        jax.vmap(
            lambda key: (
                jm.mine_triplets(
                    key, z, labels, related=related, margin=0.5, selection="random"
                ).negative
            )
        )
    )
    negative = np.asarray(mine_many(jax.random.split(jax.random.key(0), 2000)))
    first, second = negative[:, 0, 1] - 4, negative[:, 2, 3] - 4
    table = np.zeros((6, 6))
    np.add.at(table, (first, second), 1)
    assert scipy.stats.chisquare(table.sum(0)).pvalue > 1e-3
    assert scipy.stats.chisquare(table.sum(1)).pvalue > 1e-3
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_same_key_same_triplets_and_another_key_others():
    generator = np.random.default_rng(0)
    z, labels = unit_rows(generator, 60), generator.integers(0, 3, 60).astype(np.int32)
    run = miner(margin=0.3, selection="random")
    one, again, other = (run(jax.random.key(seed), z, labels).negative for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_compiles_once_for_a_shape():
    generator = np.random.default_rng(0)
    run = jax.jit(functools.partial(jm.mine_triplets, margin=0.1))
    for k in (1, 3, 20):
        labels = generator.integers(0, k, 40).astype(np.int32)
        run(jax.random.key(k), unit_rows(generator, 40), labels)
    assert run._cache_size() == 1


def test_nothing_is_of_size_n_cubed():
    n = 512
    shapes = (jax.ShapeDtypeStruct((n, 16), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32))
    compiled = jax.jit(jm.mine_triplets).lower(jax.random.key(0), *shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * n * n + 32 * 2**20 < n**3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": "easy"}, "selection must be one of semihard, hardest, random"),
        ({"metric": "manhattan"}, "metric must be one of sqeuclidean, euclidean, cosine"),
        ({"labels": np.zeros(3, np.int32)}, "labels must have shape"),
        ({"labels": np.full(4, 2, np.int32)}, "labels must be less than 2"),
        ({"related": np.ones((2, 3), bool)}, "related must be"),
        ({"studies": np.zeros(5, np.int32)}, "studies must have shape"),
        ({"labels": None}, "positives must be given where there are no labels"),
        ({"positives": np.ones((4, 3), bool)}, "positives must be boolean of shape"),
        ({"negatives": np.ones((4, 4), np.int32)}, "negatives must be boolean of shape"),
        ({"reference": np.zeros((2, 3), np.float32)}, "reference_labels must be given"),
        ({"reference": np.zeros(3, np.float32)}, "reference must be"),
        ({"z": np.zeros((0, 3), np.float32), "labels": np.zeros(0, np.int32)}, "at least 1 cell"),
    ],
)
def test_bad_input_is_refused(change, message):
    inputs = {
        "z": np.zeros((4, 3), np.float32),
        "labels": np.zeros(4, np.int32),
        "related": np.eye(2, dtype=bool),
    }
    with pytest.raises(ValueError, match=message):
        unchecked(jm.mine_triplets)(jax.random.key(0), **(inputs | change))
