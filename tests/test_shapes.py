import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.shapes import LARGEST_STEP, filled, padded_size


@given(st.integers(0, 10**9), st.integers(1, 2000))
def test_a_size_is_enough_and_hardly_more(n, least):
    size, needed = padded_size(n, least), max(n, least)
    assert needed <= size < needed + min(max(1, needed / 8), LARGEST_STEP)
    assert padded_size(size, least) == size


def test_there_are_few_sizes():
    assert len({padded_size(n) for n in range(1000, 2000)}) <= 10
    numbers = range(10**6, 2 * 10**6, 1000)
    assert len({padded_size(n, largest_step=2**30) for n in numbers}) <= 10


def test_filled_keeps_the_rows():
    x = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(filled(x, 5, -1), [[0, 1], [2, 3], [4, 5], [-1, -1], [-1, -1]])
    np.testing.assert_array_equal(filled(np.array([True]), 2), [True, False])
