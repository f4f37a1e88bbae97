"""Columns of obs as numbers of names: no string for each cell, however many cells there are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int


class Coded(NamedTuple):
    """A name for each cell.

    Attributes:
      codes: number of each cell's name in `names`; -1: none.
      names: sorted.
    """

    codes: Int[np.ndarray, " n"]
    names: tuple[str, ...]


def coded(column: pd.Series, blank: Sequence[str] = ()) -> Coded:
    """A column's values as text; missing ones, and those that count as blank, are none."""
    column = column.astype("category")
    spelled = [str(name) for name in column.cat.categories]
    found = Coded(column.cat.codes.to_numpy(np.int32), tuple(spelled))
    return renamed(found, {name: None if name in blank else name for name in spelled})


def all_of(name: str, number: int) -> Coded:
    """One name for every cell."""
    return Coded(np.zeros(number, np.int32), (name,))


def renamed(column: Coded, new: Mapping[str, str | None]) -> Coded:
    """The same cells by new names; None: none. Names without cells are left out."""
    used = np.bincount(column.codes[column.codes >= 0], minlength=len(column.names)) > 0
    given = [new[name] if here else None for name, here in zip(column.names, used, strict=True)]
    names = sorted({name for name in given if name is not None})
    return Coded(_numbers(given, names)[column.codes], tuple(names))


def numbered(column: Coded, names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """The number of each cell's name in another list; -1: it is not there."""
    return _numbers(column.names, names)[column.codes]


def joined(columns: Sequence[Coded]) -> Coded:
    """The cells of all columns, one after the other."""
    names = sorted({name for column in columns for name in column.names})
    return Coded(np.concatenate([numbered(column, names) for column in columns]), tuple(names))


def _numbers(names: Sequence[str | None], among: Sequence[str]) -> Int[np.ndarray, " k+1"]:
    """The number of each name among others, and a last -1 for the cells that have none."""
    number = {name: i for i, name in enumerate(among)}
    found = [-1 if name is None else number.get(name, -1) for name in names]
    return np.array([*found, -1], np.int32)
