import time

import jax
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.batches.batches import batches, capacity, pack, reader, rows_in_order
from jaxmetric.batches.expression import expression
from jaxmetric.batches.prefetch import prefetch
from jaxmetric.batches.resident import gather, num_bytes, resident
from jaxmetric.cells.packed import index_type, pack_rows, value_type


def one_batch(cells, rows, shares=1, more=0):
    packed = pack_rows(cells.X, cells.value_type)
    size = capacity(cells.lengths, rows[None], shares) + more
    return pack(packed, rows, shares, size, cells.labels[rows], cells.studies[rows])


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("values", ["counts", "lognorm"])
@pytest.mark.parametrize("shares", [1, 5])
def test_packed_cells_densify_to_what_scanpy_normalises(values, shares):
    adata = make_adata(50)
    counts = adata.X.toarray()
    counts[7] = 0  # a cell without counts
    counts[8] = 70_000  # and one as wide as can be, of counts beyond 16 bits
    adata.X = sp.csr_matrix(counts)
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    cells = jm.read_cells(adata if values == "counts" else expected)
    assert cells.values == values
    batch = one_batch(cells, np.arange(50), shares)
    assert batch.columns.dtype == np.uint16
    assert batch.values.dtype == (np.uint32 if values == "counts" else np.float32)
    x = jax.jit(expression, static_argnums=(1, 2))(batch, 40, values == "counts")
    np.testing.assert_allclose(x, expected.X.toarray(), rtol=2e-6)


@given(
    st.sampled_from([1, 7, 20]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 70]),
    st.integers(0, 2**31),
)
@settings(max_examples=12, deadline=None)
def test_any_rows_in_any_shares_densify_to_these_rows(steps, shares, more, seed):
    generator = np.random.default_rng(seed)
    X = sp.random(30, 12, generator.uniform(0, 1), "csr", np.float32, generator)
    X.data[:] = generator.integers(1, 300, len(X.data))
    cells = jm.read_cells(make_adata(30, 12))
    cells = jm.Cells(**{**vars(cells), "X": X})
    rows = generator.integers(0, 30, steps * shares)
    batch = one_batch(cells, rows, shares, more)
    total = np.asarray(X.sum(1)).ravel()[rows]
    np.testing.assert_array_equal(batch.totals, total)
    x = jax.jit(expression, static_argnums=(1, 2))(batch, 12, False)
    np.testing.assert_array_equal(x, X[rows].toarray())


@pytest.mark.parametrize("shares", [1, 3])
def test_cells_on_the_device_give_the_same_batches(shares):
    cells = jm.read_cells(make_adata(200, 300), label_key="cell_type", study_key="study")
    packed = pack_rows(cells.X, cells.value_type)
    rows = np.random.default_rng(0).integers(0, 200, 30)
    expected = one_batch(cells, rows, shares)
    kept = resident(packed, cells.labels, cells.studies)
    found = jax.jit(gather, static_argnums=(2, 3))(kept, rows, shares, expected.columns.shape[1])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert sum(x.nbytes for x in kept) == num_bytes(cells.lengths, 3)


def test_types_are_the_narrowest_that_hold_all():
    assert [index_type(n) for n in (2**16, 2**16 + 1)] == [np.uint16, np.int32]
    largest = (255.0, 256.0, 65535.0, 65536.0)
    expected = [np.uint8, np.uint16, np.uint16, np.uint32]
    assert [value_type(n, counts=True) for n in largest] == expected
    assert value_type(3.5, counts=False) == np.float32


def test_every_cell_comes_once_and_the_rest_is_not_real():
    cells = jm.read_cells(make_adata(53), label_key="cell_type", study_key="study")
    order = np.random.default_rng(0).permutation(53)
    rows = rows_in_order(order, 20)
    size = capacity(cells.lengths, rows, 4)
    made = list(batches(cells, rows, reader(cells), 4, size, at_a_time=2))
    assert [len(batch.labels) for batch in made] == [20, 20, 20]
    real = np.concatenate([batch.real for batch in made])
    assert real.sum() == 53
    labels = np.concatenate([batch.labels for batch in made])
    np.testing.assert_array_equal(labels[real], cells.labels[order])
    assert (labels[~real] == -1).all()
    x = np.concatenate([expression(batch, 40, counts=False) for batch in made])
    np.testing.assert_array_equal(x[:53], cells.X[order].toarray())
    assert (x[53:] == 0).all()


def test_prefetch_gives_all_in_order_no_more_than_asked_ahead_and_errors_where_they_belong():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i
        raise OSError("no more")

    ahead = prefetch(items(), 2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    assert [next(ahead) for _ in range(9)] == list(range(1, 10))
    with pytest.raises(OSError, match="no more"):
        next(ahead)
    closed = prefetch(iter(range(10**9)), 1)
    assert next(closed) == 0
    closed.close()
