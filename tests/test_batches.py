import json

import jax.numpy as jnp
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import scipy.stats
from conftest import DATA, make_adata

import jaxmetric as jm
from jaxmetric.batches import draw_epoch, in_order, pack, packed_width, sampling_weights
from jaxmetric.expression import expression

CONFIG = jm.Config(batch_size=400, steps_per_epoch=20, seed=3)


def test_weights_are_those_of_the_reference():
    record = json.loads((DATA / "sampler_weights.json").read_text())
    _, labels = np.unique(record["labels"], return_inverse=True)
    _, studies = np.unique(record["studies"], return_inverse=True)
    for expected, found in (
        (record["anndata_labels_only"], sampling_weights(labels)),
        (record["anndata_labels_and_studies"], sampling_weights(labels, studies)),
        (record["tiledb"], sampling_weights(labels, studies)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # recorded as float32


def test_cells_are_drawn_by_their_weights():
    weights = np.array([1.0, 2.0, 0.0, 5.0])
    drawn = np.bincount(draw_epoch(weights, CONFIG, epoch=0).ravel(), minlength=4)
    assert drawn[2] == 0
    share = weights[weights > 0] / weights.sum()
    assert scipy.stats.chisquare(drawn[weights > 0], share * drawn.sum()).pvalue > 1e-3


def test_order_is_a_function_of_seed_and_epoch():
    weights = np.ones(1000)
    first = draw_epoch(weights, CONFIG, epoch=1)
    np.testing.assert_array_equal(first, draw_epoch(weights, CONFIG, epoch=1))
    assert (first != draw_epoch(weights, CONFIG, epoch=2)).any()
    assert (
        first != draw_epoch(weights, jm.Config(batch_size=400, steps_per_epoch=20), epoch=1)
    ).any()


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("values", ["counts", "lognorm"])
def test_packed_cells_densify_to_what_scanpy_normalises(values):
    adata = make_adata(50)
    counts = adata.X.toarray()
    counts[7] = 0  # a cell without counts
    adata.X = sp.csr_matrix(counts)
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    cells = jm.read_cells(adata if values == "counts" else expected)
    assert cells.values == values
    batch = pack(cells, np.arange(50), packed_width(cells))
    columns, counts = jnp.asarray(batch.columns), jnp.asarray(batch.values)
    x = expression(columns, counts, 40, counts=values == "counts")
    np.testing.assert_allclose(x, expected.X.toarray(), rtol=2e-6)


def test_every_cell_comes_once_and_the_rest_is_not_real():
    cells = jm.read_cells(make_adata(53), label_key="cell_type", study_key="study")
    order = np.random.default_rng(0).permutation(53)
    batches = list(in_order(cells, 20, order))
    assert [len(batch.labels) for batch in batches] == [20, 20, 20]
    real = np.concatenate([batch.real for batch in batches])
    assert real.sum() == 53
    labels = np.concatenate([batch.labels for batch in batches])
    np.testing.assert_array_equal(labels[real], cells.labels[order])
    assert (labels[~real] == -1).all()
    total = np.concatenate([batch.values.sum(1) for batch in batches])
    np.testing.assert_array_equal(total[:53], np.asarray(cells.X.sum(1)).ravel()[order])
    assert (total[53:] == 0).all()
