"""Leave-one-study-out cross-validation: how well does a recipe annotate studies it has never seen?"""

import itertools
import logging
import shutil
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmetric.cells.cells import Cells, require_cells
from jaxmetric.cells.source import some
from jaxmetric.cells.split import usable_cells
from jaxmetric.config import Config
from jaxmetric.evaluation.baselines import baseline_scores
from jaxmetric.evaluation.embeddings import BASELINES
from jaxmetric.files import write_json
from jaxmetric.scores.label_transfer import (
    check_scorable,
    confusion_scores,
    number_alike,
    transfer_scores,
)
from jaxmetric.training.fit import fit
from jaxmetric.training.run import check_same, identity

log = logging.getLogger("jaxmetric")
SCORES = set(confusion_scores(np.zeros((0, 0)), np.zeros((0, 0), bool)))  # of a row
SHOWN = ("macro_f1", "macro_f1_present", "ontology_accuracy", "accuracy")


def crossvalidate(
    cells: Cells,
    recipes: Mapping[str, Config] | Config | None = None,
    *,
    directory: str | Path,
    studies: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    k: int = 15,
    baselines: bool = True,
    keep_runs: bool = False,
    progress: bool = True,
) -> list[dict]:
    """Leaves each study out in turn, trains on the others, and transfers labels to its cells.

    The left-out study chooses nothing; it is no validation set either. Its cells get the label of their
    k nearest reference cells: the training cells of the labels that the *first* recipe trains on, so
    that all recipes are scored on the same cells. What is fitted on the reference cells in seconds is
    scored beside them: see `baselines`.

    Args:
      cells: labelled cells of several studies, from `read_cells`.
      recipes: configs by name; None: `Config()`.
      directory: gets a folder for each study, recipe and seed, with its `scores.json`. Called again, it
        goes on where it was; what an earlier version scored otherwise is done again.
      studies: studies to leave out; None: all.
      seeds: seeds to train each recipe with, in place of its own seed.
      k: neighbours that vote.
      baselines: also score a truncated SVD of 50 dimensions, its linear discriminants, and a logistic
        regression of genes.
      keep_runs: keep the run of each folder, with its model, once it is scored.
      progress: show progress bars, on a terminal.

    Returns:
      A row for each study, recipe and seed: `study`, `recipe`, `seed` (None for baselines), the
      `seconds` of training (None where it was interrupted), and the scores of `transfer_scores`. A
      study is skipped, with a warning, when the other studies cannot be trained on, or when none of its
      cells has a label of a reference cell.

    Raises:
      ValueError: for cells that cannot be trained on, all of one study, studies that are not there,
        nothing to score, or a directory with scores of other cells or configs.
    """
    require_cells(cells, "cells")
    recipes = _named(recipes)
    if k < 1:
        raise ValueError(f"k must be at least 1, but is {k}.")
    studies = _studies_to_leave_out(cells, studies)
    for config in recipes.values():
        usable_cells(cells, config)
    rows, not_scored = [], {}
    for study in studies:
        try:
            fold = _fold(cells, study, recipes, k)
        except ValueError as error:
            not_scored[study] = str(error)
            log.warning("%s is not scored: %s", study, error)
            continue
        beside = baseline_scores(fold.query, fold.reference, k) if baselines else {}
        for name, scores in beside.items():
            rows.append({"study": study, "recipe": name, "seed": None} | scores)
        for (name, config), seed in itertools.product(recipes.items(), seeds):
            log.info("without %s: %s, seed %d", study, name, seed)
            folder = Path(directory, _file_name(study), _file_name(name), f"seed_{seed}")
            config = replace(config, seed=int(seed))
            scores = _scores(fold, config, k, folder, keep_runs, progress)
            rows.append({"study": study, "recipe": name, "seed": int(seed)} | scores)
    if not rows:
        reasons = " ".join(dict.fromkeys(not_scored.values()))
        raise ValueError(f"there is nothing to score without {', '.join(not_scored)}: {reasons}")
    return rows


class Fold(NamedTuple):
    """The cells of one left-out study's fold.

    Attributes:
      query: the cells of the left-out study.
      train: the cells of the other studies.
      reference: the training cells that labels are transferred from.
    """

    query: Cells
    train: Cells
    reference: Cells


def _named(recipes: Mapping[str, Config] | Config | None) -> Mapping[str, Config]:
    """The recipes by name."""
    if not isinstance(recipes, Mapping):
        recipes = {"jaxmetric": recipes or Config()}
    if not recipes or set(BASELINES) & set(recipes):
        raise ValueError(
            f"recipes must have names, none of {', '.join(BASELINES)}, but they are {recipes}."
        )
    return recipes


def _studies_to_leave_out(cells: Cells, studies: Sequence[str] | None) -> list[str]:
    """The given studies, each once, or all where none is given."""
    present = [cells.study_names[i] for i in np.unique(cells.studies)]
    if len(present) < 2:
        raise ValueError(
            f"all cells are of study {', '.join(map(repr, present))}, so none can be left out: name the "
            "column of obs with study_key= / --study-key."
        )
    studies = [studies] if isinstance(studies, str) else () if studies is None else studies
    studies = list(dict.fromkeys(map(str, studies))) or present
    cells.in_studies(studies)  # raises where a study is not there
    return studies


def _fold(cells: Cells, study: str, recipes: Mapping[str, Config], k: int) -> Fold:
    """The fold without a study.

    Raises:
      ValueError: when a recipe cannot train on the fold, or no query cell can be scored.
    """
    held_out = cells.in_studies([study])
    query, train = cells.select(held_out), cells.select(~held_out)
    usable, *_ = [usable_cells(train, config)[0] for config in recipes.values()]
    coarse = next(iter(recipes.values())).singleton_labels == "coarsen"
    reference = train.with_only(_labels(usable), or_below=coarse)
    check_scorable(number_alike(query, reference), k)
    return Fold(query, train, reference)


def crossvalidation_table(rows: list[dict]) -> str:
    """The rows as text, a block for each score.

    Mean ± standard deviation over seeds, of each left-out study and of the mean over studies; and the
    number of cells that are scored.
    """
    recipes, studies = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("recipe", "study")
    )
    trained = {
        row["recipe"] for row in rows if row["seed"] is not None
    }  # so that there is a spread
    left = max(22, *map(len, studies)) + 2
    widths = {name: max(13 if name in trained else 5, len(name)) + 3 for name in recipes}
    scored = {row["study"]: row["num_scored"] for row in rows}
    lines = []
    for score in SHOWN:
        lines.append(f"{score:{left}}" + "".join(f"{r:>{widths[r]}}" for r in recipes) + "   cells")
        found = {recipe: _by_study(rows, recipe, score, studies) for recipe in recipes}
        for i, study in enumerate(studies):
            line = "".join(f"{_spread(found[r][i]):>{widths[r]}}" for r in recipes)
            lines.append(f"{study:{left}}{line}{scored[study]:>8}")
        over = "".join(f"{_spread(found[r].mean(0)):>{widths[r]}}" for r in recipes)
        lines += [f"{'mean':{left}}{over}", ""]
    return "\n".join(lines[:-1])


def _by_study(rows, recipe: str, score: str, studies: list[str]) -> np.ndarray:
    """The score of a recipe: (studies, seeds)."""
    mine = [row for row in rows if row["recipe"] == recipe]
    return np.array([[row[score] for row in mine if row["study"] == study] for study in studies])


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _labels(cells: Cells) -> list[str]:
    return [cells.label_names[i] for i in np.unique(cells.labels) if i >= 0]


def _scores(
    fold: Fold, config: Config, k: int, folder: Path, keep_runs: bool, progress: bool
) -> dict[str, Any]:
    """The scores of a model trained on a fold; read from the folder if they are there."""
    query, train, reference = fold
    inputs = identity(train, query, config) | {"k": k, "reference_labels": _labels(reference)}
    path, begun_before = folder / "scores.json", (folder / "run").exists()
    if (kept := _kept(path, inputs)) is not None:
        return kept
    start = time.monotonic()
    model = fit(train, config, directory=folder / "run", progress=progress)
    scores: dict[str, Any] = {
        "seconds": None if begun_before else round(time.monotonic() - start, 1)
    }
    scores |= transfer_scores(model.embed(query), query, model.embed(reference), reference, k=k)
    write_json(path, inputs | {"scores": scores})
    if not keep_runs:
        shutil.rmtree(folder / "run")
    return scores


def _kept(path: Path, inputs: dict) -> dict[str, Any] | None:
    """The scores in a file; None where it is absent, or of another version: these are to be done again.

    Another version has other scores, or a config of other fields.
    """
    if not path.exists():
        return None
    there = check_same(path, {"format": inputs["format"]})
    differ = SCORES - set(there["scores"]) | set(there["config"]) ^ set(inputs["config"])
    if differ:
        log.warning(
            "%s is of another version of jaxmetric (%s): done again", path, some(sorted(differ), 4)
        )
        return None
    return check_same(path, inputs)["scores"]


def _file_name(name: str) -> str:
    """A folder's name for any name, also for "", ".." and "a/b": percent-encoded where it must be."""
    return urllib.parse.quote(name, safe=" ").replace(".", "%2E", name.startswith(".")) or "%"
