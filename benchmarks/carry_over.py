"""Does the embedding carry over to studies never seen, and is it ahead of what takes a second?

    python benchmarks/carry_over.py FILE.h5ad ... --label-key celltype_name --directory DIR

Leaves each study of each file out in turn (`jaxmetric.crossvalidate`), with the defaults of `Config`, and
labels its cells by the 15 nearest training cells. Prints, of each file, the mean over its studies of
macro-F1 / accuracy / macro-F1 over the labels that the study has / ontology-aware accuracy, beside the
baselines. Studies with fewer than 40 cells to score do not count. With --start also the
discriminants that training starts from, untrained. Done models are not trained again.
"""

import argparse
import datetime
import os
from pathlib import Path

import numpy as np

import jaxmetric as jm

SCORES = ("macro_f1", "accuracy", "macro_f1_present", "ontology_accuracy")
LEAST = 40  # cells to score, for a study to count
START = {"max_epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--study-key", default="study")
    parser.add_argument(
        "--plain-labels", nargs="*", default=(), help="files without ontology, by stem"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--directory", type=Path, required=True)
    asked = parser.parse_args()
    recipes = {"jaxmetric": jm.Config()} | (
        {"its start": jm.Config(**START)} if asked.start else {}
    )
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {asked.seeds} seeds")
    print("| file | " + " | ".join(SCORES) + " | s a model |\n|---|" + "---|" * (len(SCORES) + 1))
    for path in asked.files:
        cells = jm.read_cells(
            path,
            label_key=asked.label_key,
            study_key=asked.study_key,
            ontology=None if path.stem in asked.plain_labels else "default",
        )
        rows = jm.crossvalidate(
            cells,
            recipes,
            directory=asked.directory / path.stem,
            studies=scored_studies(cells),
            seeds=range(asked.seeds),
            progress=False,
        )
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            print(line(path.stem, recipe, rows), flush=True)


def scored_studies(cells: jm.Cells) -> list[str]:
    """The studies with enough cells of labels that two other studies have."""
    found = []
    for study in cells.study_names:
        query = cells.in_studies([study])
        pairs = {*zip(cells.labels[~query].tolist(), cells.studies[~query].tolist(), strict=True)}
        known = [
            label for label in set(cells.labels.tolist()) if sum(a == label for a, _ in pairs) > 1
        ]
        if np.isin(cells.labels[query], known).sum() >= LEAST:
            found.append(study)
    return found


def line(file: str, recipe: str, rows: list[dict]) -> str:
    """Means over studies, ± the standard deviation over seeds."""
    mine = [row for row in rows if row["recipe"] == recipe]
    seeds = list(dict.fromkeys(row["seed"] for row in mine))
    cells = []
    for score in SCORES:
        means = [np.mean([r[score] for r in mine if r["seed"] == seed]) for seed in seeds]
        spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
        cells.append(f"{np.mean(means):.3f}{spread}")
    taken = [row["seconds"] for row in mine if row.get("seconds")]
    cells.append(f"{np.median(taken):.0f}" if taken else "")
    return f"| {file}, {recipe} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
