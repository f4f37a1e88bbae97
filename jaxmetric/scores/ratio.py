"""Division that has no value, rather than an error, where there is nothing to divide by."""

import numpy as np
from jaxtyping import ArrayLike, Float, Num


def ratio(part: Num[ArrayLike, "*b"], whole: Num[ArrayLike, "*b"]) -> Float[np.ndarray, "*b"]:
    """part / whole; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
