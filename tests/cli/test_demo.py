import anndata
import numpy as np
import pytest

import jaxmetric as jm
from jaxmetric.cli import demo


def test_held_out_fifth_is_stratified():
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    held_out = demo.stratified_fifth(labels, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [10, 2, 1]


@pytest.mark.filterwarnings("ignore")  # of scanpy
def test_demo_leaves_model_metrics_cells_and_pictures(tmp_path, monkeypatch):
    fields = demo.CONFIG.to_dict() | {"batch_size": 128, "max_epochs": 3}
    monkeypatch.setattr(demo, "CONFIG", jm.Config(**fields))
    scores = demo.demo(tmp_path / "demo")
    assert scores["num_scored"] == scores["num_cells"] == 143
    assert scores["accuracy"] > 0.6
    adata = anndata.read_h5ad(tmp_path / "demo" / "cells.h5ad")
    model = jm.load(tmp_path / "demo" / "run" / "model")
    assert adata.obsm["X_jaxmetric"].shape == (700, 32)
    assert set(model.labels) == set(demo.CELL_TYPES.values())
    assert len((tmp_path / "demo" / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    for picture in ("training.png", "map.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")
