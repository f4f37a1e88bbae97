"""Which cells batches hold: the reference's weights, and what blocks and passes promise."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from conftest import DATA

import jaxmetric as jm
from jaxmetric.batches.sampling import sampler, sampling_weights

CONFIG = jm.Config(batch_size=400, steps_per_epoch=20, seed=3, shuffle_steps=4, block_size=16)
LABELS = np.random.default_rng(0).integers(0, 5, 1000)
STUDIES = np.random.default_rng(1).integers(0, 3, 1000)
KINDS = [("weighted", 1), ("weighted", 16), ("uniform", 1), ("uniform", 16), ("per_class", 1)]


def drawing(sampling, block, **changes):
    config = dataclasses.replace(CONFIG, sampling=sampling, **changes)
    return sampler(LABELS, STUDIES, config, block)


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


@pytest.mark.parametrize(("sampling", "block"), KINDS)
def test_order_is_a_function_of_seed_and_epoch(sampling, block):
    draw = drawing(sampling, block)
    first = draw(1)
    assert first.shape == (20, 400)
    np.testing.assert_array_equal(first, drawing(sampling, block)(1))
    assert (first != draw(2)).any()
    assert (first != drawing(sampling, block, seed=4)(1)).any()


@pytest.mark.parametrize("block", [1, 16, 7])
def test_cells_are_drawn_by_their_weights_in_blocks_too(block):
    labels = np.repeat([0, 1, 2], [700, 250, 50])
    draw = sampler(labels, None, CONFIG, block)
    drawn = np.concatenate([draw(epoch).ravel() for epoch in range(50)])
    share = sampling_weights(labels)
    counts = np.bincount(drawn, minlength=len(labels))
    # rows of a block come together, so counts vary more than independent draws would: by at most `block`
    deviation = (counts - share / share.sum() * len(drawn)) / np.sqrt(
        share / share.sum() * len(drawn)
    )
    assert np.abs(deviation).max() < 5 * np.sqrt(block)
    assert np.abs(np.bincount(labels[drawn]) / len(drawn) - 1 / 3).max() < 0.02
    if block == 1:
        assert scipy.stats.chisquare(counts, share / share.sum() * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("sampling", ["weighted", "uniform"])
def test_every_batch_has_cells_from_all_over(sampling):
    rows = drawing(sampling, 16)(0)
    assert (np.ptp(rows, axis=1) > 800).all()
    quarters = np.apply_along_axis(np.bincount, 1, rows // 250, minlength=4)
    assert (quarters > 20).all()


@pytest.mark.parametrize("block", [1, 16, 7])
def test_uniform_batches_bring_each_cell_in_turn(block):
    draw = drawing("uniform", block, steps_per_epoch=7, shuffle_steps=1000)
    drawn = np.concatenate([draw(epoch).ravel() for epoch in range(30)])  # 84,000 draws: 84 passes
    np.testing.assert_array_equal(np.bincount(drawn, minlength=1000), 84)
    assert len(np.unique(draw(0)[:2])) > 500


def test_the_cells_of_a_block_are_dealt_out_over_batches():
    rows = drawing("uniform", 16)(0)
    assert np.mean(np.diff(np.sort(rows[0])) == 1) < 0.5
    lanes = rows[:4].reshape(4, 8, 50)
    blocks = [set((lanes[:, lane] // 16).ravel()) for lane in range(8)]
    assert max(map(len, blocks)) <= 200 / 16 + 3  # a lane's cells are of few blocks


def test_batches_per_class_hold_as_many_of_each():
    draw = drawing("per_class", 1, cells_per_class=100)
    drawn = draw(0)
    for rows in drawn:
        found, counts = np.unique(LABELS[rows], return_counts=True)
        assert len(found) == 4
        assert (counts == 100).all()
    few = drawing("per_class", 1, cells_per_class=10)(
        0
    )  # 40 classes wanted, five there: each 8 times
    assert (np.apply_along_axis(np.bincount, 1, LABELS[few]) == 80).all()
    counts = np.bincount(np.concatenate([draw(e).ravel() for e in range(20)]), minlength=1000)
    for label in range(5):
        of_class = counts[label == LABELS]
        assert of_class.max() - of_class.min() <= 20  # each epoch begins its own turns


def test_per_class_needs_batches_of_whole_classes():
    with pytest.raises(ValueError, match=r"batch_size is 400, .* Config.cells_per_class, 7"):
        drawing("per_class", 1, cells_per_class=7)
