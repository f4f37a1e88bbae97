"""What a matrix holds: counts or log-normalised values."""

import logging
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from jaxmetric.config import Values

log = logging.getLogger("jaxmetric")
CELLS = 1000  # whose totals are looked at
LOG_LIMIT = float(np.log1p(1e6))  # log1p of a whole cell's share, at counts per million


class Range(NamedTuple):
    """What tells counts from log-normalised values.

    Attributes:
      largest: the largest value.
      fractions: how many values are not whole numbers.
      values: how many values there are.
    """

    largest: float = 0.0
    fractions: int = 0
    values: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> "Range":
        """The range of some values."""
        fractions = int((values != np.rint(values)).sum())
        return cls(float(values.max(initial=0)), fractions, values.size)

    def joined(self, other: "Range") -> "Range":
        """The range of both."""
        largest = max(self.largest, other.largest)
        return Range(largest, self.fractions + other.fractions, self.values + other.values)


def value_kind(found: Range, values: Values | None, where: str) -> Values:
    """What a matrix of this range holds.

    Raises:
      ValueError: when it is not what was said, or neither counts nor log-normalised.
    """
    if values not in (None, "counts", "lognorm"):
        raise ValueError(f"values must be 'counts' or 'lognorm', but is {values!r}.")
    if values == "counts" and found.fractions:
        raise ValueError(
            f"{where} must hold counts, but {found.fractions / found.values:.0%} of its values are not "
            "whole numbers. If it is log-normalised, say values='lognorm' / --values lognorm."
        )
    if values is not None:
        return values
    if not found.fractions:
        return "counts"
    if "counts" in where.rpartition(": ")[2]:
        raise ValueError(
            f"{where} must hold counts, but has values that are not whole numbers. Choose another "
            "matrix with layer= / --layer, or say values='lognorm' / --values lognorm."
        )
    if found.largest <= LOG_LIMIT:
        return "lognorm"
    raise ValueError(
        f"{where} is neither counts (whole numbers) nor log-normalised (up to {LOG_LIMIT:.1f}): it "
        f"has fractions and reaches {found.largest:.4g}. Normalised without log1p? Choose another "
        "matrix with layer= / --layer, or decide with values='lognorm' / --values lognorm."
    )


def warn_of_scale(X: sp.csr_matrix, where: str) -> None:
    """Says where log-normalised cells clearly have another total than 10,000.

    Their totals show it only where all genes are there: then the first cells have nearly one total.
    """
    X = X[:CELLS]
    if X.nnz and X.data.max() > LOG_LIMIT:
        return  # the caller has said that these are log-normalised
    totals = np.asarray(X.expm1().sum(1)).ravel()
    low, middle, high = np.quantile(totals, (0.05, 0.5, 0.95)) if len(totals) else (0, 0, 0)
    if 0 < high - low < 0.02 * middle and abs(middle - 1e4) > 0.1 * 1e4:
        log.warning(
            "%s is normalised to %.0f counts per cell, not 10,000, so its values are on another scale: "
            "give counts, or log1p of sc.pp.normalize_total(adata, target_sum=1e4).",
            where,
            middle,
        )
