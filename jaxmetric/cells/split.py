"""Which cells are trained on, and which are held out."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxmetric.cells.cells import Cells
from jaxmetric.config import Config
from jaxmetric.labels.label_set import coarsen_singletons, singleton_labels

log = logging.getLogger("jaxmetric")
NAMED = 5  # labels that a message names


def split(cells: Cells, validation: Sequence[str] | Cells | None) -> tuple[Cells, Cells | None]:
    """Training and held-out cells."""
    if validation is None or (not isinstance(validation, Cells) and len(validation) == 0):
        return cells, None
    if isinstance(validation, Cells):
        return cells, validation.with_genes(cells.genes)
    held_out = cells.in_studies(validation)
    if held_out.all():
        raise ValueError("validation holds out every study: nothing is left to train on.")
    return cells.select(~held_out), cells.select(held_out)


def usable_cells(cells: Cells, config: Config) -> tuple[Cells, dict[str, int]]:
    """The cells that can be trained on, and how many were dropped for each reason.

    Raises:
      ValueError: when too few cells, labels or studies are left.
    """
    dropped = {}

    def keep(cells: Cells, which: np.ndarray, reason: str) -> Cells:
        if not which.all():
            dropped[reason] = int((~which).sum())
        return cells.select(which)

    if not (cells.labels >= 0).any():
        raise ValueError(
            "no cell has a label: name the column of obs with label_key= / --label-key."
        )
    cells = keep(cells, cells.labels >= 0, "no label")
    cells = keep(cells, cells.filled(), "no counts in the genes")
    if config.sample_across_studies:
        if len(np.unique(cells.studies)) < 2:
            raise ValueError(
                "all cells are of one study, so no cell has a positive in another: name the column "
                "of obs with study_key= / --study-key, or set sample_across_studies=False / "
                "--no-sample-across-studies."
            )
        if config.singleton_labels == "coarsen":
            cells = _coarsen(cells)
        single = singleton_labels(cells.labels, cells.studies)
        names = "; ".join(cells.label_names[i] for i in single[:NAMED])
        names += f"; and {len(single) - NAMED} more" if len(single) > NAMED else ""
        if len(single) and config.singleton_labels == "drop" and cells.ontology is not None:
            log.info("singleton_labels='coarsen' / --singleton-labels coarsen keeps such cells")
        cells = keep(cells, ~np.isin(cells.labels, single), f"label in one study only ({names})")
    num_labels = len(np.unique(cells.labels))
    if num_labels < 2:
        raise ValueError(
            f"training needs cells of at least 2 labels, but has {num_labels} (dropped: "
            f"{dropped or 'none'}). With labels found in one study only, see singleton_labels / "
            "--singleton-labels."
        )
    return cells, dropped


def _coarsen(cells: Cells) -> Cells:
    if cells.ontology is None:
        raise ValueError(
            "singleton_labels='coarsen' needs an ontology: read the cells with one, or use 'drop'."
        )
    labels = coarsen_singletons(cells.labels, cells.studies, cells.label_names, cells.ontology)
    log.info("coarsened the labels of %d cells", (labels != cells.labels).sum())
    return dataclasses.replace(cells, labels=labels)
