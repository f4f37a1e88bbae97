"""One file of cells, read to its end: what it holds, and whether it can be used."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmetric.cells.coded import Coded, all_of, coded
from jaxmetric.cells.genes import Names, gene_names
from jaxmetric.cells.read import label_column, study_column
from jaxmetric.cells.source import Source, ValuesError, opened
from jaxmetric.cells.values import Range, value_kind
from jaxmetric.config import Filters, Values
from jaxmetric.preparation.filters import kept_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How each file is read.

    Attributes:
      label_key: column of obs with the cell types.
      study_key: column of obs with the study; None: each file is a study, by its path.
      layer: the matrix to read; None: layer "counts" where there is one, else X; raw where only that has
        counts.
      values: what the matrices hold; None: detected.
      gene_key: column of var with the gene names; None: its index.
    """

    label_key: str
    study_key: str | None = None
    layer: str | None = None
    values: Values | None = None
    gene_key: str | None = None


class Scan(NamedTuple):
    """What one file holds.

    Attributes:
      layer: the matrix that was read; None: layer "counts" where there is one, else X.
      cells: cells in it.
      kept: cells that are kept.
      dropped: cells that are not, by reason.
      values: what its matrix holds.
      largest: its largest value.
      names: names of its genes, by kind.
      of_gene: values of each gene, of the kept cells.
      labels: kept cells of each label, as the file spells it.
      unlabelled: kept cells without label.
      studies: studies of the kept cells.
      samples: samples of the kept cells.
    """

    layer: str | None
    cells: int
    kept: int
    dropped: dict[str, int]
    values: Values
    largest: float
    names: Names
    of_gene: list[int]
    labels: dict[str, int]
    unlabelled: int
    studies: list[str]
    samples: list[str]


class Obs(NamedTuple):
    """Of each cell of a file: label as spelled, study, sample."""

    labels: Coded
    studies: Coded
    samples: Coded

    def kept(self, which: np.ndarray) -> "Obs":
        """Of some cells."""
        return Obs(*(column._replace(codes=column.codes[which]) for column in self))


def obs_of(source: Source, reading: Reading, filters: Filters, study: str) -> Obs:
    """What is read of the source's cells beside their values; all are of `study` without study_key."""
    labels = label_column(source, reading.label_key)
    studies = samples = all_of(study, len(source))
    if reading.study_key is not None:
        studies = study_column(source, reading.study_key)
    if filters.sample_key is not None:
        samples = coded(source.column(filters.sample_key, "sample"))
    return Obs(labels, studies, samples)


def scan(
    path: Path,
    reading: Reading,
    filters: Filters,
    study: str,
    advance: Callable[[float], object],
) -> Scan:
    """Reads a file whole; `advance` is told how far it is. Arguments as in `obs_of`.

    Raises:
      ValueError: for a file that cannot be used.
    """
    layer = counts_layer(path, reading)
    with opened(path, str(path), layer) as source:
        names, obs = gene_names(source, reading.gene_key), obs_of(source, reading, filters, study)
        found, dropped, kept = Range(), Counter(), []
        of_gene = np.zeros(source.matrix.shape[1], np.int64)
        for block in kept_blocks(source, obs.studies, obs.samples, names, filters):
            found, dropped = found.joined(Range.of(block.X.data)), dropped + block.reasons
            of_gene += np.bincount(block.X[block.kept].indices, minlength=len(of_gene))
            kept.append(block.kept)
            advance(len(block.kept) / len(source))
        kept = np.concatenate(kept)
        kind = value_kind(found, reading.values, source.where)
        if kind == "lognorm" and (filters.min_counts or filters.max_mito < 1):
            raise ValueError(
                f"{source.where} is log-normalised: min_counts and max_mito are of counts."
            )
        obs = obs.kept(kept)
        return Scan(
            layer=layer,
            cells=len(source),
            kept=int(kept.sum()),
            dropped=dict(dropped),
            values=kind,
            largest=found.largest,
            names=names,
            of_gene=of_gene.tolist(),
            labels=_counts(obs.labels),
            unlabelled=int((obs.labels.codes < 0).sum()),
            studies=list(_counts(obs.studies)),
            samples=list(_counts(obs.samples)),
        )


def counts_layer(path: Path, reading: Reading) -> str | None:
    """The layer asked for; else "raw" where that has whole numbers, and what comes before it has not."""
    if reading.layer is not None or reading.values == "lognorm":
        return reading.layer

    def whole(layer: str | None) -> bool:
        with opened(path, str(path), layer) as source:
            return not Range.of(source.first_values()).fractions

    try:
        return None if whole(None) or not whole("raw") else "raw"
    except ValuesError:  # there is no X, or no raw
        return None


def _counts(column: Coded) -> dict[str, int]:
    """The cells of each name that has any."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.names))
    return {name: int(n) for name, n in zip(column.names, counts, strict=True) if n}
