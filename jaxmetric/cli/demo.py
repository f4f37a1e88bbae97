"""The demo: 700 real human blood cells, from training to scores and pictures, in about a minute."""

import logging
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
from jaxtyping import Bool, Float

from jaxmetric.cells.cells import Cells
from jaxmetric.cells.read import read_cells
from jaxmetric.config import Config
from jaxmetric.evaluation.plots import map_figure, plot_history
from jaxmetric.evaluation.report import score_table
from jaxmetric.files import write_h5ad, write_json
from jaxmetric.model.load import load
from jaxmetric.training.fit import fit

log = logging.getLogger("jaxmetric")

# The sorted populations of Zheng et al., Nature Communications 8:14049 (2017), as Cell Ontology terms.
CELL_TYPES = {
    "CD14+ Monocyte": "CD14-positive monocyte",
    "CD19+ B": "B cell",
    "CD34+": "hematopoietic precursor cell",
    "CD4+/CD25 T Reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
    "CD4+/CD45RA+/CD25- Naive T": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "CD4+/CD45RO+ Memory": "CD4-positive, alpha-beta memory T cell",
    "CD56+ NK": "natural killer cell",
    "CD8+ Cytotoxic T": "CD8-positive, alpha-beta cytotoxic T cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "Dendritic": "dendritic cell",
}
CONFIG = Config(
    hidden_dim=(256, 128),
    latent_dim=32,
    sample_across_studies=False,  # there is only one study
    triplet_loss_weight=0.5,
    learning_rate=2e-3,
    max_epochs=10,
    steps_per_epoch=30,
    batch_size=256,
)


def demo(directory: Path) -> dict[str, float]:
    """Trains on four fifths of `scanpy.datasets.pbmc68k_reduced()` and scores the held-out fifth.

    Writes to the directory: `run/` with `metrics.jsonl` and `model/`, `cells.h5ad` with
    `obsm["X_jaxmetric"]`, `scores.json`, `training.png` and `map.png`. Run again, it goes on where
    it was, and draws anew.
    """
    start = time.monotonic()
    log.info("reading scanpy.datasets.pbmc68k_reduced(): 700 human PBMCs (Zheng et al. 2017)")
    adata = blood_cells()
    for population, cell_type in CELL_TYPES.items():
        log.info("  %-28s -> %s", population, cell_type)
    cells = read_cells(adata, label_key="cell_type", study_key="study")
    held_out = stratified_fifth(cells.labels, seed=CONFIG.seed)
    log.info("%s; %d of them are held out", cells.describe(), held_out.sum())
    train, query = cells.select(~held_out), cells.select(held_out)
    fit(train, CONFIG, directory=directory / "run", validation=query)
    model = load(directory / "run" / "model")
    log.info("embedding and scoring")
    scores = model.evaluate(query, train)
    adata.obsm["X_jaxmetric"] = model.embed(adata)
    adata.obs["held_out"] = np.where(held_out, "held out", "training")
    log.info("drawing: t-SNE of the embedding, training curves")
    plot_history(model.history, directory / "training.png")
    _draw_map(adata.obsm["X_jaxmetric"], cells, held_out, directory / "map.png")
    write_h5ad(adata, directory / "cells.h5ad")
    write_json(directory / "scores.json", scores)
    log.info("\nheld-out cells, labels of the 15 nearest training cells:\n%s", score_table(scores))
    log.info("\n%d s; everything is in %s", time.monotonic() - start, directory)
    return scores


def blood_cells() -> anndata.AnnData:
    """The cells with log-normalised X (scanpy keeps it in `.raw`) and Cell Ontology names."""
    try:
        import scanpy
    except ImportError as error:
        raise ImportError("the demo needs scanpy: pip install 'jaxmetric[demo]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an old AnnData format
        adata = scanpy.datasets.pbmc68k_reduced()
    adata = anndata.AnnData(adata.raw.X, adata.obs[["bulk_labels"]], adata.raw.var)
    adata.obs["cell_type"] = adata.obs["bulk_labels"].map(CELL_TYPES).astype("category")
    adata.obs["study"] = "Zheng 2017"
    return adata


def stratified_fifth(labels: np.ndarray, seed: int) -> np.ndarray:
    """A mask of one fifth of the cells of each label, rounded up."""
    held_out = np.zeros(len(labels), bool)
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out[members[: -(-len(members) // 5)]] = True
    return held_out


def _draw_map(
    z: Float[np.ndarray, "n d"], cells: Cells, held_out: Bool[np.ndarray, " n"], path: Path
) -> None:
    """By t-SNE: a UMAP would have to be compiled, which takes longer than the training here."""
    from sklearn.manifold import TSNE

    places = TSNE(init="pca", random_state=0).fit_transform(z)
    groups = {"cell type; held-out cells are dark": (cells.label_names, cells.labels)}
    map_figure(places, held_out, groups, "t-SNE").savefig(path, dpi=120)
