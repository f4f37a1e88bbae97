"""What other methods make of a study that they have never seen, on the folds of `carry_over.py`.

    python benchmarks/peers.py FILE.h5ad ... --label-key celltype_name --directory DIR

Leaves each study of each file out in turn. Prints macro-F1 / accuracy / macro-F1 over the labels that the
study has / ontology-aware accuracy, means over the studies, and the seconds of a model, of

  CellTypist                  trained on the fold; its own prediction, by cell
  scANVI, prediction          scVI, then scANVI on the training cells; scArches maps the query, on which
                              it trains without labels; its own prediction
  scANVI, neighbours          the 15 neighbours in its latent space
  SCimilarity's recipe        `Config.scimilarity()`, by jaxmetric; its networks and numerics
  jaxmetric                   `Config()`

Each peer runs in an environment of its own, made in DIR with `python -m venv` where there is none. A fold
that is done is not done again. The seconds of a peer are those of its process, which reads, trains and
predicts; ours are those of training.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REQUIREMENTS = {
    "celltypist": ("celltypist==1.7.1", "scikit-learn<1.8"),
    "scanvi": ("torch==2.13.0", "scvi-tools==1.4.2"),
}
SCORES = ("macro_f1", "accuracy", "macro_f1_present", "ontology_accuracy")
PASSES = {"scvi": 100, "scanvi": 20, "query": 100}
VARIABLE_GENES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--study-key", default="study")
    parser.add_argument("--plain-labels", nargs="*", default=(), help="as in carry_over.py")
    parser.add_argument("--peers", nargs="*", default=[*REQUIREMENTS, "scimilarity", "jaxmetric"])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--fold", nargs=2, help=argparse.SUPPRESS)  # within a peer's environment
    asked = parser.parse_args()
    if asked.directory is None and not asked.fold:
        parser.error("--directory is needed")
    if asked.fold:
        peer, folder = asked.fold
        {"celltypist": celltypist, "scanvi": scanvi}[peer](Path(folder))
        return
    print(f"{datetime.date.today()}, {os.cpu_count()} cores")
    print("| file | " + " | ".join(SCORES) + " | s a model |\n|---|" + "---|" * (len(SCORES) + 1))
    for path in asked.files:
        rows = [row for fold in folds(path, asked) for row in scored(*fold, asked)]
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == name]
            means = [f"{np.mean([row[score] for row in mine]):.3f}" for score in SCORES]
            seconds = np.median([row["seconds"] for row in mine])
            print(f"| {path.stem}, {name} | {' | '.join(means)} | {seconds:.0f} |", flush=True)


def folds(path: Path, asked: argparse.Namespace):
    """(a folder, training cells, query cells) of each study; the cells of labels that both know."""
    from carry_over import scored_studies

    import jaxmetric as jm
    from jaxmetric.cells.split import usable_cells

    ontology = None if path.stem in asked.plain_labels else "default"
    keys = {"label_key": asked.label_key, "study_key": asked.study_key}
    cells = jm.read_cells(path, **keys, ontology=ontology)
    for study in scored_studies(cells):
        query = cells.in_studies([study])
        train, _ = usable_cells(cells.select(~query), jm.Config())
        names = [train.label_names[i] for i in np.unique(train.labels)]
        of_query = cells.select(query).with_only(names).with_labels(names)
        yield asked.directory / path.stem / study, train.with_labels(names), of_query


def scored(folder: Path, train, query, asked: argparse.Namespace) -> list[dict]:
    """A row of scores for each method that was asked for."""
    rows = []
    for peer in asked.peers:
        done = folder / f"{peer}.json"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            if peer in REQUIREMENTS:
                found = by_peer(peer, folder, train, query, asked.directory)
            else:
                found = by_jaxmetric(peer, train, query)
            done.write_text(json.dumps(found))
        rows += json.loads(done.read_text())
    return rows


def by_jaxmetric(recipe: str, train, query) -> list[dict]:
    import jaxmetric as jm

    config = jm.Config.scimilarity() if recipe == "scimilarity" else jm.Config()
    name = "SCimilarity's recipe" if recipe == "scimilarity" else recipe
    start = time.monotonic()
    model = jm.fit(train, config, progress=False)
    seconds = time.monotonic() - start
    return [row(name, seconds, neighbours(model.embed(query), model.embed(train)), train, query)]


def by_peer(peer: str, folder: Path, train, query, directory: Path) -> list[dict]:
    """Writes the fold, has the peer read it in its environment, and scores what it says."""
    for name, cells in (("train", train), ("query", query)):
        adata_of(cells).write_h5ad(folder / f"{name}.h5ad")
    python = environment(directory / "environments" / peer, REQUIREMENTS[peer])
    start = time.monotonic()
    subprocess.run([python, __file__, "--fold", peer, str(folder)], check=True)
    seconds = time.monotonic() - start
    said = dict(np.load(folder / f"{peer}.npz", allow_pickle=False))
    number = {name: i for i, name in enumerate(train.label_names)}
    predicted = np.array([number[name] for name in said["predicted"]])
    if "query" not in said:
        return [row("CellTypist", seconds, lambda labels: predicted, train, query)]
    near = neighbours(said["query"], said["train"])
    return [
        row("scANVI, prediction", seconds, lambda labels: predicted, train, query),
        row("scANVI, neighbours", seconds, near, train, query),
    ]


def row(method: str, seconds: float, predict: Callable, train, query) -> dict:
    """The scores of what a method predicts, numbered as `number_alike` does."""
    from jaxmetric.scores.label_transfer import number_alike, prediction_scores

    labels = number_alike(query, train)
    scores = prediction_scores(predict(labels), labels)
    return {"method": method, "seconds": seconds} | {name: scores[name] for name in SCORES}


def neighbours(z: np.ndarray, z_reference: np.ndarray) -> Callable:
    from jaxmetric.scores.label_transfer import predict

    return lambda labels: predict(z, z_reference, labels, 15)


def adata_of(cells):
    """An AnnData with log-normalised X, and counts as a layer where there are counts."""
    import anndata
    import pandas as pd

    from jaxmetric.cells.cells import log_normalized

    obs = {
        "label": np.array(cells.label_names)[cells.labels],
        "study": np.array(cells.study_names)[cells.studies],
    }
    names = [f"cell_{i}" for i in range(len(cells))]
    adata = anndata.AnnData(
        log_normalized(cells),
        pd.DataFrame(obs, index=names),
        pd.DataFrame(index=list(cells.genes)),
    )
    if cells.values == "counts":
        adata.layers["counts"] = cells.matrix()
    return adata


def environment(folder: Path, requirements: tuple[str, ...]) -> str:
    """The Python of an environment with the requirements, made where there is none."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "done").write_text("\n".join(requirements))
    return str(python)


def celltypist(folder: Path) -> None:
    """In its own environment: a multinomial logistic regression with its choice of features."""
    import anndata
    import celltypist  # pyright: ignore[reportMissingImports]

    train, query = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("train", "query"))
    model = celltypist.train(train, labels="label", feature_selection=True, max_iter=100, n_jobs=2)
    found = celltypist.annotate(query, model=model, majority_voting=False)
    labels = found.predicted_labels["predicted_labels"].to_numpy(str)
    np.savez(folder / "celltypist.npz", predicted=labels)


def scanvi(folder: Path) -> None:
    """In its own environment: scVI, scANVI from it, and scArches' mapping of the query."""
    import anndata
    import numpy as np
    import scanpy as sc
    import scvi  # pyright: ignore[reportMissingImports]

    train, query = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("train", "query"))
    if "counts" not in train.layers:  # log-normalised values alone: as near to counts as can be
        for cells in (train, query):
            cells.layers["counts"] = cells.X.expm1()
    sc.pp.highly_variable_genes(
        train, n_top_genes=min(VARIABLE_GENES, train.n_vars), batch_key="study"
    )
    variable = train.var["highly_variable"].to_numpy()
    train, query = train[:, variable].copy(), query[:, variable].copy()
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(train, layer="counts", batch_key="study", labels_key="label")
    model = scvi.model.SCVI(train, n_layers=2, encode_covariates=True, use_layer_norm="both",
                            use_batch_norm="none", deeply_inject_covariates=False)  # fmt: skip
    model.train(max_epochs=PASSES["scvi"], accelerator="cpu")
    model = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="unknown")
    model.train(max_epochs=PASSES["scanvi"], n_samples_per_label=100, accelerator="cpu")
    query.obs["label"] = "unknown"
    mapped = scvi.model.SCANVI.load_query_data(query, model)
    mapped.train(max_epochs=PASSES["query"], plan_kwargs={"weight_decay": 0.0}, accelerator="cpu")
    np.savez(
        folder / "scanvi.npz",
        predicted=np.asarray(mapped.predict(), str),
        query=mapped.get_latent_representation(),
        train=model.get_latent_representation(),
    )


if __name__ == "__main__":
    main()
