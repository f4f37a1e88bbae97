"""Real cells of five studies: `JAXMETRIC_DATA=FOLDER pytest -m real_data`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FLAGS

import jaxmetric as jm

pytestmark = pytest.mark.real_data
FOLDER = os.environ.get("JAXMETRIC_DATA")
KEYS = ["--label-key", "celltype_name", "--study-key", "study"]


def shell(*arguments):
    """Runs `jaxmetric ARGUMENTS` as a user does: on the machine's own devices."""
    flags = " ".join(flag for flag in FLAGS if "device_count" not in flag)
    env = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-m", "jaxmetric", *arguments], check=True, env=env)


@pytest.fixture(scope="module")
def file():
    if FOLDER is None:
        pytest.skip("JAXMETRIC_DATA names no folder of real cells")
    return str(Path(FOLDER) / "human_immune_multistudy.h5ad")


def test_a_study_never_seen_is_annotated_better_than_by_the_reference(file, tmp_path):
    """Held out: 10x_pbmc3k. SCimilarity's own code, 200 steps: accuracy 0.882, macro-F1 0.708."""
    run, scores = str(tmp_path / "run"), tmp_path / "scores.json"
    data = [file, *KEYS, "--validation", "10x_pbmc3k"]
    shell("train", *data, "--directory", run, "--max-epochs", "5", "--quiet")
    shell("evaluate", run, file, *KEYS, "--studies", "10x_pbmc3k", "--out", str(scores))
    found = json.loads(scores.read_text())
    model = jm.load(run)
    assert model.trained_on["cells"] == found["num_reference"] == 2533
    assert len(model.labels) == 5
    assert found["num_scored"] == 1250
    assert found["accuracy"] >= 0.96
    assert found["macro_f1"] >= 0.76
    assert found["beside"]["SVD-50"]["accuracy"] == pytest.approx(0.978, abs=0.01)


def test_counts_and_log_values_of_the_same_cells_embed_alike(file):
    counts = jm.read_cells(file, label_key="celltype_name", study_key="study")
    logged = jm.read_cells(file, layer="X")
    assert (counts.values, logged.values) == ("counts", "lognorm")
    assert len(counts) == 6080
    assert counts.label_names[counts.labels[0]] == "B cell"
