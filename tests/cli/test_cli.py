import json
import signal
import subprocess
import sys

import anndata
import numpy as np
import pytest
from conftest import DATA
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.training.watch import Watch

SIZES = ["--hidden-dim", "16", "8", "--latent-dim", "4"]
BUDGET = ["--max-epochs", "2", "--steps-per-epoch", "3", "--batch-size", "32", "--quiet"]
KEYS = ["--label-key", "cell_type", "--study-key", "study"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cells.h5ad"
    make_adata(160).write_h5ad(path)
    return str(path)


def test_train_embed_evaluate(file, tmp_path, capsys):
    run, out, scores = (str(tmp_path / name) for name in ("run", "out.h5ad", "scores.json"))
    main(["train", file, *KEYS, "--validation", "study_1", "--directory", run, *SIZES, *BUDGET])
    model = jm.load(run)
    assert model.config.hidden_dim == (16, 8)
    assert model.trained_on["studies"] == ["study_0", "study_2"]
    main(["embed", run, file, "--out", out])
    embedded = anndata.read_h5ad(out)
    np.testing.assert_array_equal(embedded.obsm["X_jaxmetric"], model.embed(file))
    main(["evaluate", run, file, *KEYS, "--studies", "study_1", "--out", scores])
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "SVD-50" in printed
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["num_cells"] == (embedded.obs["study"] == "study_1").sum()
    assert 0 <= written["macro_f1"] <= 1
    with pytest.raises(SystemExit) as stop:
        main(["embed", run, file, "--out", out])
    assert stop.value.code == 2
    assert "exists: choose another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing subcommand"),
        (["fly"], "fly"),
        (["train"], "--directory"),
        (["train", "FILE", *KEYS, "--directory", "RUN", "--margin", "-1"], "Config.margin must be"),
        (["train", "FILE", *KEYS, "--directory", "RUN", "--margin", "x"], "margin"),
        (["train", "FILE", *KEYS, "--directory", "RUN", "--metric", "l1"], "l1"),
        (["train", "none.h5ad", *KEYS, "--directory", "RUN"], "no such file: none.h5ad"),
        (["train", *KEYS, "--directory", "RUN"], "no data"),
        (["train", "FILE", "--label-key", "kind", "--directory", "RUN"], "no label column"),
        (["embed", "MODEL", "FILE", "--out", "x.h5ad"], "is no model directory"),
        (["import", "REFERENCE", "FILE/model"], "cells.h5ad"),
    ],
)
def test_bad_use_gives_one_line_and_exit_code_2(arguments, message, file, tmp_path, capsys):
    names = {"FILE": file, "RUN": str(tmp_path / "run"), "MODEL": str(tmp_path)}
    names |= {"REFERENCE": str(DATA / "reference_model"), "FILE/model": f"{file}/model"}
    with pytest.raises(SystemExit) as stop:
        main([names.get(argument, argument) for argument in arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("jaxmetric: error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_each_unknown_label_has_a_line_of_its_own(tmp_path, capsys):
    adata = make_adata(20, types=("B cel", "T cel"))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(SystemExit):
        main(["train", f"{tmp_path}/cells.h5ad", *KEYS, "--directory", str(tmp_path / "run")])
    lines = capsys.readouterr().err.splitlines()
    assert [sum(label in line for line in lines) for label in ("'B cel'", "'T cel'")] == [1, 1]
    assert not any("'B cel'" in line and "'T cel'" in line for line in lines)


def test_scimilaritys_numerics_are_a_flag_and_other_flags_still_count(file, tmp_path):
    run = str(tmp_path / "run")
    main(["train", file, *KEYS, "--directory", run, "--scimilarity", *SIZES, *BUDGET])
    expected = {"max_epochs": 2, "steps_per_epoch": 3, "batch_size": 32}
    expected |= {"hidden_dim": (16, 8), "latent_dim": 4}
    assert jm.load(run).config == jm.Config.scimilarity(**expected)


def test_evaluate_reads_the_models_genes_with_the_overlap_asked_for(file, tmp_path, capsys):
    run, few = str(tmp_path / "run"), str(tmp_path / "few.h5ad")
    main(["train", file, *KEYS, "--directory", run, *SIZES, *BUDGET])
    make_adata(160)[:, :4].copy().write_h5ad(few)
    command = ["evaluate", run, few, *KEYS, "--studies", "study_1"]
    main([*command, "--min-gene-overlap", "0.05", "--k", "3"])
    assert "accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(command)
    assert "only 4 of the 40 genes" in capsys.readouterr().err


def test_python_m_is_the_same_command():
    help_text = subprocess.run(
        [sys.executable, "-m", "jaxmetric", "train", "--help"], capture_output=True, text=True
    )
    assert help_text.returncode == 0
    for flag in ("--max-epochs", "--hidden-dim", "--label-key", "--validation", "--directory"):
        assert flag in help_text.stdout


def test_an_interrupted_run_ends_with_the_signals_code_and_says_how_to_go_on(
    file, tmp_path, capsys, monkeypatch
):
    run = ["train", file, *KEYS, "--directory", str(tmp_path / "run"), *SIZES, *BUDGET]

    def signalled(*arguments, follow=Watch.steps_under_way):
        signal.raise_signal(signal.SIGTERM)
        follow(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "steps_under_way", signalled)
        with pytest.raises(SystemExit) as stop:
            main(run)
    assert stop.value.code == 128 + signal.SIGTERM
    assert "after step 1, which is saved in" in capsys.readouterr().err
    main([*run, "--log-every", "2"])
    assert jm.load(tmp_path / "run").history["epoch"].tolist() == [1, 2]


def test_a_loss_that_is_not_finite_ends_with_code_1(file, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", file, *KEYS, "--directory", str(tmp_path / "run"), *SIZES, *BUDGET,
              "--learning-rate", "1e18"])  # fmt: skip
    assert stop.value.code == 1
    assert "of epoch 1" in capsys.readouterr().err


def test_flags_of_several_processes_go_together(file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", file, *KEYS, "--directory", str(tmp_path / "run"), "--processes", "2"])
    assert "coordinator, processes and process_id go together" in capsys.readouterr().err
