"""Which parts of the recipe carry over to studies never seen? One factor at a time, by cross-validation.

    python benchmarks/ablation.py human_immune_multistudy.h5ad --label-key celltype_name \
        --study-key study --directory ablation

Leaves each study out in turn (`jaxmetric.crossvalidate`). Two tables: SCimilarity's recipe with one thing
changed, and ours with one thing taken back; all are scored on the same cells. All train on 20 passes over
the training cells in batches of 512, but where they say otherwise: 800 batches of 1000 cells take the
larger networks about 8 minutes on 2 cores. Done runs are not done again.
"""

import argparse
import datetime
import os
from pathlib import Path

import numpy as np

import jaxmetric as jm

STUDIES = ("10x_pbmc3k", "Kang2018_ctrl", "Zheng2017_sorted", "Zilionis2019_NSCLC")
BUDGET = {"max_epochs": 20, "steps_per_epoch": 0, "batch_size": 512}
THEIRS = {
    "SCimilarity": {},
    "800 batches of 1000": {"max_epochs": 8, "steps_per_epoch": 100, "batch_size": 1000},
    "triplet weight 0.5": {"triplet_loss_weight": 0.5},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "one hidden layer of 256": {"hidden_dim": (256,)},
    "reads 50 components": {"input_components": 50, "discriminants": False},
    "no dropout": {"dropout": 0.0, "input_dropout": 0.0},
    "margin 0.2": {"margin": 0.2},
    "hardest negatives": {"negative_selection": "hardest"},
    "uniform sampling": {"sampling": "uniform"},
}
OURS = {
    "jaxmetric": {},
    "reads genes": {"input_components": 0},
    "reads 50 components": {"input_components": 50, "discriminants": False},
    "discriminants of 100 components": {"input_components": 100},
    "discriminants alone": {"max_epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-9},
    "no dropout of genes": {"input_dropout": 0.0},
    "three hidden layers of 1024": {"hidden_dim": (1024, 1024, 1024)},
    "triplet weight 0.001": {"triplet_loss_weight": 0.001},
    "triplet weight 1": {"triplet_loss_weight": 1.0},
    "learning rate 5e-3": {"learning_rate": 5e-3},
    "margin 0.2": {"margin": 0.2},
    "hardest negatives": {"negative_selection": "hardest"},
    "random negatives": {"negative_selection": "random"},
    "positives of any study": {"sample_across_studies": False},
    "uniform sampling": {"sampling": "uniform"},
    "80 passes": {"max_epochs": 80},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--study-key", default="study")
    parser.add_argument("--studies", nargs="*", default=STUDIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--table", choices=("theirs", "ours"))
    asked = parser.parse_args()
    cells = jm.read_cells(asked.file, label_key=asked.label_key, study_key=asked.study_key)
    tables = {"theirs": (jm.Config.scimilarity, THEIRS), "ours": (jm.Config, OURS)}
    for table, (preset, variants) in tables.items():
        if asked.table not in (None, table):
            continue
        print(f"{datetime.date.today()}, {os.cpu_count()} cores, {asked.seeds} seeds")
        print(
            "| recipe | macro-F1 | ontology accuracy |" + "".join(f" {s} |" for s in asked.studies)
        )
        print("|---|---|---|" + "---|" * len(asked.studies), flush=True)
        for name, change in variants.items():
            rows = jm.crossvalidate(
                cells,
                {next(iter(variants)): preset(**BUDGET), name: preset(**(BUDGET | change))},
                directory=asked.directory / table,
                studies=asked.studies,
                seeds=range(asked.seeds),
                baselines=name == next(iter(variants)),
                progress=False,
            )
            for baseline in dict.fromkeys(r["recipe"] for r in rows if r["seed"] is None):
                print(_line(baseline, rows, asked.studies))
            print(_line(name, rows, asked.studies), flush=True)


def _line(name: str, rows: list[dict], studies: list[str]) -> str:
    """Means over studies ± standard deviation over seeds; of each study macro-F1 / ontology accuracy."""
    mine = [row for row in rows if row["recipe"] == name]
    found = [
        [[r[score] for r in mine if r["study"] == study] for study in studies]
        for score in ("macro_f1", "ontology_accuracy")
    ]
    f1, onto = map(np.array, found)
    line = f"| {name} |"
    for one in (f1.mean(0), onto.mean(0)):
        line += f" {one.mean():.3f}" + (f" ± {one.std(ddof=1):.3f} |" if len(one) > 1 else " |")
    return line + "".join(
        f" {a.mean():.3f} / {b.mean():.3f} |" for a, b in zip(f1, onto, strict=True)
    )


if __name__ == "__main__":
    main()
