"""Which distance, and which order of pairs, carries over best to a study never seen?

    python benchmarks/metric_and_order.py human_immune_multistudy.h5ad --out results.jsonl

Leaves each of three studies out in turn, three seeds, 200 steps of 500 cells, and transfers labels to
its cells from their 15 nearest training cells. Rows: distance of the miner and of the loss ("reference"
mines on squared distances and loses on plain ones), pairs mined in one order or both. A run already in
results.jsonl is not done again. Expect an hour on 2 cores.
"""

import argparse
import datetime
import itertools
import json
import platform
from pathlib import Path

import jax
import numpy as np

import jaxmetric as jm
from jaxmetric.config import PUBLISHED

STUDIES = ("10x_pbmc3k", "Kang2018_ctrl", "Zheng2017_sorted")
SEEDS = (0, 1, 2)
DISTANCES = {
    "reference": {"mining_metric": "sqeuclidean", "metric": "euclidean"},
    "euclidean": {"metric": "euclidean"},
    "sqeuclidean": {"metric": "sqeuclidean"},
}
BUDGET = PUBLISHED | {"max_epochs": 2, "steps_per_epoch": 100, "batch_size": 500}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cells = jm.read_cells(arguments.file, label_key="celltype_name", study_key="study")
    done = {}
    if arguments.out.exists():
        rows = map(json.loads, arguments.out.read_text().splitlines())
        done = {(r["distance"], r["both_orders"], r["study"], r["seed"]): r for r in rows}
    for seed, study in itertools.product(SEEDS, STUDIES):
        held_out = cells.in_studies([study])
        query, train = cells.select(held_out), cells.select(~held_out)
        for distance, both_orders in itertools.product(DISTANCES, (False, True)):
            key = (distance, both_orders, study, seed)
            if key in done:
                continue
            config = jm.Config(**BUDGET, **DISTANCES[distance], both_orders=both_orders, seed=seed)
            model = jm.fit(train, config, progress=False)
            found = model.evaluate(query, train, baselines=False)
            scores = {name: found[name] for name in ("accuracy", "macro_f1", "silhouette")}
            names = ("distance", "both_orders", "study", "seed")
            done[key] = dict(zip(names, key, strict=True)) | scores
            with arguments.out.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
    print_table(list(done.values()))


def print_table(rows: list[dict]) -> None:
    """Mean over studies and seeds, its standard error over seeds, and the mean of each study."""
    device = jax.devices()[0]
    print(
        f"{datetime.date.today()}, {device.device_kind} x {jax.device_count()}, {platform.machine()}"
    )
    print("| distance | pairs | accuracy | macro-F1 |" + "".join(f" {s} |" for s in STUDIES))
    print("|---|---|---|---|" + "---|" * len(STUDIES))
    for distance, both in itertools.product(DISTANCES, (False, True)):
        mine = [r for r in rows if (r["distance"], r["both_orders"]) == (distance, both)]
        cells = []
        for score in ("accuracy", "macro_f1"):
            of_seed = [np.mean([r[score] for r in mine if r["seed"] == seed]) for seed in SEEDS]
            error = np.std(of_seed, ddof=1) / len(SEEDS) ** 0.5
            cells.append(f"{np.mean(of_seed):.3f} ± {error:.3f}")
        for study in STUDIES:
            here = [r for r in mine if r["study"] == study]
            means = (np.mean([r[score] for r in here]) for score in ("accuracy", "macro_f1"))
            cells.append(" / ".join(f"{mean:.3f}" for mean in means))
        print(f"| {distance} | {'both orders' if both else 'one order'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
