"""The evaluation of a model: its embedding of query cells, scored beside others, as report and page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.read import read_cells
from jaxmetric.evaluation.baselines import baselines as baselines_of
from jaxmetric.evaluation.embeddings import (
    MODEL,
    Embedding,
    given_embeddings,
    in_memory,
    logged,
)
from jaxmetric.evaluation.page import page_of
from jaxmetric.evaluation.plots import require_pictures
from jaxmetric.evaluation.report import report_of, scores_alone
from jaxmetric.files import write_text


def evaluate(
    embed: Callable[[Cells, Cells | None], Embedding],
    query: Cells,
    reference: Cells | None,
    *,
    genes: Sequence[str],
    is_reference: Callable[[Cells], Bool[np.ndarray, " r"]] | None,
    k: int,
    baselines: bool,
    embeddings: Mapping[str, tuple],
    page: str | Path | None,
    history: pd.DataFrame,
) -> dict[str, Any]:
    """The report of `MetricLearning.evaluate`, which documents the other arguments and the result.

    Args:
      embed: query and reference cells -> the model's embedding of them.
      query: labelled cells to score.
      reference: labelled cells to transfer labels from.
      genes: the genes that the model reads.
      is_reference: which of the reference cells are used; None: all.
      k: neighbours that vote.
      baselines: also score what takes seconds and no network.
      embeddings: other embeddings by name: of the query and of the reference cells.
      page: where to write the report with pictures; None: nowhere.
      history: a row of metrics per epoch of the model, for the page.
    """
    query = read_cells(require_cells(query, "query"), genes=genes)
    if reference is None:
        if page is not None or embeddings:
            raise ValueError("a page, or other embeddings, need reference cells: reference=.")
        return scores_alone(embed(query, None), query)
    reference = read_cells(require_cells(reference, "reference"), genes=genes)
    others = given_embeddings(embeddings, len(query), len(reference))
    _check_page(page)
    _check_not_empty(query, reference)
    if is_reference is not None:
        used = is_reference(reference)
        reference = reference.select(used)
        others = {name: z._replace(reference=z.reference[used]) for name, z in others.items()}
    query, reference = in_memory(query), in_memory(reference)
    logged_cells = logged(query), logged(reference)
    compared = {MODEL: embed(query, reference)}
    if baselines:
        compared |= baselines_of(query, reference, *logged_cells)
    compared |= others
    report = report_of(compared, *logged_cells, k=k)
    if page is not None:
        drawn = {name: one for name, one in compared.items() if isinstance(one, Embedding)}
        write_text(Path(page), page_of(report, drawn, query, reference, history))
    return report


def _check_page(page: str | Path | None) -> None:
    """Raises an error where the page could not be drawn or written."""
    if page is None:
        return
    require_pictures()
    if not Path(page).absolute().parent.is_dir():
        raise ValueError(f"no such folder: {Path(page).parent}, to write the page in.")


def _check_not_empty(query: Cells, reference: Cells) -> None:
    if not len(query) or not len(reference):
        raise ValueError(
            f"there are {len(query)} query and {len(reference)} reference cells: neither may be none."
        )
