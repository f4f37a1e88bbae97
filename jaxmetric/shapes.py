"""Sizes that arrays are padded to: a program is compiled for each shape, so there should be few."""

import numpy as np

LARGEST_STEP = 2**13  # so that what is large, and takes long, is hardly padded


def padded_size(n: int, least: int = 8, largest_step: int = LARGEST_STEP) -> int:
    """The next of few sizes: multiples of an eighth of a power of two, or of the largest step."""
    n = max(n, least)
    step = min(2 ** max(n.bit_length() - 4, 0), largest_step)
    return -(-n // step) * step


def filled(x: np.ndarray, size: int, value: float = 0) -> np.ndarray:
    """The array with rows of the value after its last, up to the size."""
    if size == len(x):
        return x
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)
