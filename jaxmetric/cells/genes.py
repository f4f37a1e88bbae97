"""Names of genes: symbols or Ensembl ids, and one order for several files."""

import logging
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from jaxmetric.cells.source import Source, some

log = logging.getLogger("jaxmetric")
MISSING = 0.05  # the share of genes that may be missing without a warning
ENSEMBL = re.compile(r"(ENS[A-Z]{0,4}G\d{11})(\.\d+)?")
IDS, SYMBOLS = "Ensembl ids", "gene symbols"
SYMBOL_COLUMNS = (
    "feature_name",
    "gene_symbol",
    "gene_symbols",
    "gene_name",
    "gene_names",
    "gene_short_name",
    "symbol",
)
Names = dict[str, tuple[str, ...]]  # by kind


def kind_of_names(names: Sequence[str]) -> str:
    """Whether most of the names are Ensembl ids; all others count as symbols."""
    matching = sum(ENSEMBL.fullmatch(name) is not None for name in names)
    return IDS if matching > len(names) / 2 else SYMBOLS


def unversioned(names: Sequence[str]) -> tuple[str, ...]:
    """The names, Ensembl ids without their version, unless two are then the same."""
    bare = tuple(m[1] if (m := ENSEMBL.fullmatch(name)) else name for name in names)
    return bare if len(set(bare)) == len(bare) else tuple(names)


def gene_names(source: Source, gene_key: str | None) -> Names:
    """The names of a source's genes: those asked for, and those of the other kind where `var` has them.

    Ensembl ids lose their version.
    """
    asked = source.genes(gene_key)
    found = {kind_of_names(asked): asked}
    for key in source.var.columns if gene_key is None else ():
        names = source.var[key]
        if pd.api.types.is_numeric_dtype(names):
            continue
        names = tuple(np.asarray(names.astype(object), str))
        kind = kind_of_names(names)
        if (kind == IDS or key.lower() in SYMBOL_COLUMNS) and len(set(names)) == len(names):
            found.setdefault(kind, names)
    return {kind: unversioned(names) for kind, names in found.items()}


def of_one_kind(names: dict[str, Names], kind: str | None = None) -> dict[str, tuple[str, ...]]:
    """The genes of each file by names of one kind: the given one, or one that all files have.

    Raises:
      ValueError: when there is none.
    """
    for one in [kind] if kind else list(next(iter(names.values()))):
        if all(one in found for found in names.values()):
            return {file: found[one] for file, found in names.items()}
    wanted = f"{kind} are wanted" if kind else "the files mix kinds of gene names"
    kinds = "; ".join(f"{file}: {' and '.join(found)}" for file, found in names.items())
    raise ValueError(
        f"{wanted}, but not every file has them ({kinds}). Name a column of var that all files have "
        "with gene_key= / --gene-key, or leave files out."
    )


def one_order(
    names: dict[str, tuple[str, ...]], genes: str | Sequence[str], min_gene_overlap: float
) -> tuple[str, ...]:
    """The genes of all files: "intersection" and "union" in the order of the first, or those given.

    Raises:
      ValueError: when a file has too few of them, or they are too few of its own.
    """
    every = list(names.values())
    if genes == "union":
        return tuple(dict.fromkeys(gene for own in every for gene in own))
    if genes == "intersection":
        shared = set(every[0]).intersection(*every[1:])
        order = tuple(gene for gene in every[0] if gene in shared)
    elif isinstance(genes, str):
        raise ValueError(
            f"genes must be 'intersection', 'union' or a list of names, but is {genes!r}."
        )
    else:
        order = unversioned(genes)
        if len(set(order)) < len(order):
            raise ValueError("genes has names more than once.")
    for file, own in names.items():
        whole = own if genes == "intersection" else order
        share = len(set(own) & set(order)) / max(len(whole), 1)
        if share < min_gene_overlap or not order:
            what = "its genes are those of all files" if whole is own else "the genes are there"
            raise ValueError(
                f"{file}: {share:.0%} of {what} (at least {min_gene_overlap:.0%} wanted); it has "
                f"{some(own)}. Choose the column of var with gene_key= / --gene-key, use genes='union' / "
                "--genes union, or lower min_gene_overlap= / --min-gene-overlap."
            )
    return order


def gene_columns(
    genes: Sequence[str], target: Sequence[str], min_gene_overlap: float, name: str
) -> tuple[Int[np.ndarray, " genes"], tuple[str, ...]]:
    """The target's number of each gene, -1: none, and the target's genes that are not there.

    Versions of Ensembl ids do not matter.
    """
    own, wanted = pd.Index(unversioned(genes)), pd.Index(unversioned(target))
    columns = wanted.get_indexer(own)
    missing = ~wanted.isin(own)
    if 1 - missing.mean() < min_gene_overlap or missing.all():
        raise ValueError(
            f"{name} has only {(~missing).sum()} of the {len(target)} genes expected (at least "
            f"{min_gene_overlap:.0%} wanted); found {some(genes)}, expected {some(target)}. Are "
            "both gene symbols, or both Ensembl ids, of one species? Choose the column of var with "
            "gene_key= / --gene-key, or lower min_gene_overlap= / --min-gene-overlap."
        )
    return columns, tuple(np.asarray(target, object)[missing])


def warn_of_missing(missing: Sequence[str], number: int, name: str) -> None:
    """Says how many of a number of genes expected are missing; as a warning where they are many."""
    if missing:
        log.log(
            logging.WARNING if len(missing) > MISSING * number else logging.INFO,
            "%s lacks %d of the %d genes expected (%s); they are taken as 0. Where many are, embeddings "
            "shift: give all genes that were measured, not the highly variable ones.",
            name,
            len(missing),
            number,
            some(missing),
        )
