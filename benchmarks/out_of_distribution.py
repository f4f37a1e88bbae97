"""Does `annotate` flag cells of a type that it does not know, and leave the others alone?

    python benchmarks/out_of_distribution.py human_immune_multistudy.h5ad --label-key celltype_name

The query study is never seen. Nothing, or one of its types, is also left out of network and reference;
then its cells should be flagged, and cells of the types trained on should not. For an encoder of
discriminants, the default, for one of components, and for one of genes. Some 20 seconds a row and seed
on 2 cores.
"""

import argparse
import datetime
import itertools
import os
from pathlib import Path

import numpy as np

import jaxmetric as jm

INPUTS = {
    "discriminants": {},
    "50 components": {"input_components": 50, "discriminants": False},
    "genes": {"input_components": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--study-key", default="study")
    parser.add_argument("--query", default="10x_pbmc3k")
    types = ("B cell", "CD14-positive monocyte", "natural killer cell")
    parser.add_argument("--types", nargs="*", default=types)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    cells = jm.read_cells(asked.file, label_key=asked.label_key, study_key=asked.study_key)
    held_out = cells.in_studies([asked.query])
    query, others = cells.select(held_out), cells.select(~held_out)
    print(f"{datetime.date.today()}, {os.cpu_count()} cores")
    print("| encoder reads | type left out | of it flagged | of known types flagged |")
    print("|---|---|---|---|", flush=True)
    for what, left_out in itertools.product(INPUTS, (None, *asked.types)):
        configs = [jm.Config(seed=seed, **INPUTS[what]) for seed in range(asked.seeds)]
        rows = [flagged(others, query, left_out, config) for config in configs]
        of_it, of_known = (
            " / ".join(f"{share:.0%}" for share in column) for column in zip(*rows, strict=True)
        )
        print(
            f"| {what} | {left_out or 'none'} | {of_it if left_out else ''} | {of_known} |",
            flush=True,
        )


def flagged(others: jm.Cells, query: jm.Cells, left_out: str | None, config: jm.Config) -> tuple:
    """Shares of the query cells that are flagged: of the type left out, and of the types trained on."""
    if left_out is not None:
        others = others.select(others.labels != others.label_names.index(left_out))
    model = jm.fit(others, config, progress=False)
    out = model.annotate(query, others)["jaxmetric_out_of_distribution"]
    names = np.array(query.label_names, object)[query.labels]
    return tuple(out[np.isin(names, some)].mean() for some in ([left_out], model.labels))


if __name__ == "__main__":
    main()
