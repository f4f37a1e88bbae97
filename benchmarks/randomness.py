"""What does reading a store by blocks of neighbouring cells do to batches, and to the result?

    python benchmarks/randomness.py human_immune_multistudy.h5ad    # 15 minutes on 2 cores

Prepares a store of the file, and one of its cells sorted by label, the worst order. For each
block size and number of batches that blocks are dealt out over: the entropy of the labels of a batch of
500 cells, over that of fully random batches, and the different cells in it. Then trains with one study
held out, 100 steps, three seeds, and transfers labels to its cells from their 15 nearest training cells.
"""

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

import anndata
import numpy as np
import scipy.stats

import jaxmetric as jm
from jaxmetric.config import PUBLISHED
from jaxmetric.scores.label_transfer import transfer_scores
from jaxmetric.training.loop import draws

HELD_OUT = "10x_pbmc3k"
BUDGET = PUBLISHED | {"max_epochs": 1, "steps_per_epoch": 100, "batch_size": 500}
WAYS = ((1, 32), (8, 32), (32, 32), (128, 32), (32, 4), (32, 1))
TRAINED = ((1, 32), (32, 32), (128, 32))


def of_batches(cells: jm.Cells, block: int, steps: int) -> tuple[float, float]:
    """Mean entropy of a batch's labels, in bits, and share of its cells that differ."""
    config = jm.Config(**BUDGET, block_size=block, shuffle_steps=steps)
    drawn = np.concatenate([draws(cells, config)(epoch) for epoch in range(5)])
    counts = [np.bincount(cells.labels[rows]) for rows in drawn]
    different = [len(np.unique(rows)) / len(rows) for rows in drawn]
    return float(np.mean([scipy.stats.entropy(c, base=2) for c in counts])), float(
        np.mean(different)
    )


def scores(train: jm.Cells, query: jm.Cells, block: int, steps: int) -> np.ndarray:
    """Accuracy and macro-F1 of each seed."""
    found = []
    for seed in range(3):
        config = jm.Config(**BUDGET, block_size=block, shuffle_steps=steps, seed=seed)
        model = jm.fit(train, config, progress=False)
        known = train.with_only(model.labels)
        result = transfer_scores(model.embed(query), query, model.embed(known), known)
        found.append((result["accuracy"], result["macro_f1"]))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--no-training", action="store_true")
    options = parser.parse_args()
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}; {options.file.name}"
    )
    keys = {"label_key": "celltype_name", "study_key": "study"}
    adata = anndata.read_h5ad(options.file)
    with tempfile.TemporaryDirectory() as temporary:
        folder, stores = Path(temporary), {}
        order = np.argsort(adata.obs["celltype_name"].to_numpy(), kind="stable")
        for name, rows in (("as it is", slice(None)), ("sorted by label", order)):
            adata[rows].copy().write_h5ad(folder / f"{name}.h5ad")
            jm.prepare(folder / f"{name}.h5ad", folder / name, **keys, progress=False)
            stores[name] = jm.read_cells(folder / name)
        print("order            block  over  entropy  of random  different cells")
        for name, cells in stores.items():
            train = cells.select(~cells.in_studies([HELD_OUT]))
            at_random = of_batches(train, 1, 32)[0]
            for block, steps in WAYS:
                bits, different = of_batches(train, block, steps)
                print(
                    f"{name:16}{block:6}{steps:6}{bits:9.3f}{bits / at_random:11.3f}{different:17.2f}"
                )
        if options.no_training:
            return
        print("order            block  over  accuracy        macro-F1")
        for name, cells in stores.items():
            held_out = cells.in_studies([HELD_OUT])
            for block, steps in TRAINED:
                found = scores(cells.select(~held_out), cells.select(held_out), block, steps)
                mean, error = found.mean(0), found.std(0, ddof=1) / 3**0.5
                texts = (f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True))
                print(f"{name:16}{block:6}{steps:6}  {'   '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
