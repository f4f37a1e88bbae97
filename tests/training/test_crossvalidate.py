import json

import numpy as np
import pytest
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.evaluation.embeddings import BASELINES
from jaxmetric.training.crossvalidate import SHOWN, _file_name, crossvalidation_table

SMALL = {
    "hidden_dim": (16,),
    "latent_dim": 4,
    "batch_size": 32,
    "max_epochs": 1,
    "steps_per_epoch": 3,
}


@pytest.fixture
def cells():
    return jm.read_cells(make_adata(160), label_key="cell_type", study_key="study")


def test_each_row_is_that_of_a_model_trained_on_the_other_studies(cells, tmp_path, compiled):
    config = jm.Config(**SMALL)
    rows = jm.crossvalidate(
        cells, config, directory=tmp_path, seeds=(3,), k=3, keep_runs=True, progress=False
    )
    assert [(r["study"], r["recipe"], r["seed"]) for r in rows] == [
        (study, *recipe)
        for study in ("study_0", "study_1", "study_2")
        for recipe in (*((name, None) for name in BASELINES), ("jaxmetric", 3))
    ]
    assert compiled.count("jit(step)") <= 1  # the studies' models are trained by one program
    held_out = cells.in_studies(["study_1"])
    train, query = cells.select(~held_out), cells.select(held_out)
    model = jm.fit(train, jm.Config(**SMALL, seed=3), progress=False)
    scores = model.evaluate(query, train, k=3)
    *beside, own = rows[4:8]
    assert own["num_scored"] == scores["num_scored"]
    for name in ("accuracy", "macro_f1", "macro_f1_present", "ontology_accuracy"):
        assert own[name] == scores[name]
        for row in beside:
            assert row[name] == scores["beside"][row["recipe"]][name]
    assert own["seconds"] > 0
    run = tmp_path / "study_1" / "jaxmetric" / "seed_3" / "run"
    assert "val_" not in (run / "metrics.jsonl").read_text()  # the left-out study decides nothing


def test_what_is_done_is_not_done_again_and_other_work_is_refused(cells, tmp_path, monkeypatch):
    config = jm.Config(**SMALL)
    asked = {"directory": tmp_path, "seeds": (0,), "progress": False}
    first = jm.crossvalidate(cells, config, studies=["study_0"], **asked)
    folder = tmp_path / "study_0" / "jaxmetric" / "seed_0"
    assert [path.name for path in folder.iterdir()] == ["scores.json"]
    with monkeypatch.context() as patch:
        from jaxmetric.training import crossvalidate as module

        patch.setattr(module, "fit", lambda *_, **__: pytest.fail("done again"))
        assert jm.crossvalidate(cells, config, studies=["study_0"], **asked) == first
        with pytest.raises(ValueError, match=r"belongs to another run .*config.margin"):
            jm.crossvalidate(cells, jm.Config(**SMALL, margin=0.1), studies=["study_0"], **asked)
        with pytest.raises(ValueError, match=r"belongs to another run .*training cells"):
            jm.crossvalidate(cells.select(np.arange(150)), config, studies=["study_0"], **asked)
        with pytest.raises(ValueError, match=r"belongs to another run .*k"):
            jm.crossvalidate(cells, config, studies=["study_0"], k=4, **asked)


@pytest.mark.parametrize("keep_runs", [False, True])
def test_rows_of_another_version_are_done_again(keep_runs, cells, tmp_path, caplog):
    asked = {"studies": ["study_0"], "seeds": (0,), "baselines": False, "progress": False}
    asked |= {"directory": tmp_path, "keep_runs": keep_runs}
    (first,) = jm.crossvalidate(cells, jm.Config(**SMALL), **asked)
    path = tmp_path / "study_0" / "jaxmetric" / "seed_0" / "scores.json"
    before = json.loads(path.read_text())
    del before["scores"]["macro_f1_present"]
    path.write_text(json.dumps(before))
    (again,) = jm.crossvalidate(cells, jm.Config(**SMALL), **asked)
    assert again | {"seconds": None} == first | {"seconds": None}
    assert "is of another version of jaxmetric (macro_f1_present): done again" in caplog.text
    if not keep_runs:
        path.write_text(json.dumps(before | {"config": {**before["config"], "gone": 1}}))
        (again,) = jm.crossvalidate(cells, jm.Config(**SMALL), **asked)
        assert "(gone, macro_f1_present): done again" in caplog.text
        assert again["accuracy"] == first["accuracy"]


def test_one_that_was_interrupted_has_no_time(cells, tmp_path, monkeypatch):
    from jaxmetric.training import crossvalidate as module

    def interrupted(*arguments, **how):
        jm.fit(*arguments, **how)
        raise KeyboardInterrupt

    def again():
        config = jm.Config(**SMALL)
        asked = {"studies": "study_0", "seeds": (0,), "progress": False}
        return jm.crossvalidate(cells, config, directory=tmp_path, baselines=False, **asked)[0]

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again()
    assert again()["seconds"] is None


def test_recipes_of_other_labels_are_scored_on_the_same_cells(tmp_path, monkeypatch):
    adata = make_adata(240, num_studies=3)
    neurons = (adata.obs["cell_type"] == "T cell") & (adata.obs["study"] != "study_1")
    adata.obs.loc[neurons, "cell_type"] = "neuron"  # without study_0, in study_2 alone
    cells = jm.read_cells(adata, label_key="cell_type", study_key="study")
    recipes = {
        "across": jm.Config(**SMALL),
        "any": jm.Config(**SMALL, sample_across_studies=False),
    }
    out, common = (
        adata.obs["study"] == "study_0",
        ~adata.obs["cell_type"].isin(["T cell", "neuron"]),
    )
    expected = {
        1: ((common & ~out).sum(), (common & out).sum()),
        -1: ((~out).sum(), out.sum()),
    }
    model = jm.fit(cells, recipes["any"], progress=False)

    def trained(*_, directory, **__):
        directory.mkdir(parents=True)
        return model

    monkeypatch.setattr("jaxmetric.training.crossvalidate.fit", trained)
    for order in (1, -1):
        asked = {"directory": tmp_path / str(order), "studies": ["study_0"], "seeds": (0,)}
        named = dict(list(recipes.items())[::order])
        rows = jm.crossvalidate(cells, named, **asked, keep_runs=True, progress=False)
        assert [row["recipe"] for row in rows] == [*BASELINES, *named]
        assert {(row["num_reference"], row["num_scored"]) for row in rows} == {expected[order]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"recipes": {"LDA-50": jm.Config()}}, "recipes must have names"),
        ({"recipes": {}}, "recipes must have names"),
        ({"studies": ["study_9"]}, "study_9"),
    ],
)
def test_bad_input_is_refused_before_training(how, message, cells, tmp_path, monkeypatch):
    from jaxmetric.training import crossvalidate as module

    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        jm.crossvalidate(cells, directory=tmp_path, **how)


def test_every_name_has_a_folder_of_its_own(tmp_path):
    names = ["", ".", "..", "a/b", "a", ".a", "%", "a b", "/", "ä"]
    folders = [(tmp_path / _file_name(name)).resolve() for name in names]
    assert {folder.parent for folder in folders} == {tmp_path.resolve()}
    assert len(set(folders)) == len(names)


def test_a_study_without_a_label_of_the_others_is_left_out_with_a_warning(tmp_path, caplog):
    adata = make_adata(200, num_studies=4)
    adata.obs.loc[adata.obs["study"] == "study_1", "cell_type"] = "neuron"
    cells = jm.read_cells(adata, label_key="cell_type", study_key="study")
    rows = jm.crossvalidate(
        cells, jm.Config(**SMALL), directory=tmp_path, seeds=(0,), progress=False
    )
    assert {row["study"] for row in rows} == {"study_0", "study_2", "study_3"}
    assert "study_1 is not scored" in caplog.text
    with pytest.raises(ValueError, match="nothing to score"):
        jm.crossvalidate(cells, jm.Config(**SMALL), directory=tmp_path, studies=["study_1"])


def test_cells_of_one_study_are_an_error(tmp_path):
    cells = jm.read_cells(make_adata(60), label_key="cell_type")
    with pytest.raises(ValueError, match="none can be left out"):
        jm.crossvalidate(cells, directory=tmp_path)


def test_the_table_has_means_and_spreads_over_seeds():
    scores = {("a", 0): 0.5, ("a", 1): 0.7, ("b", 0): 0.1, ("b", 1): 0.3}
    rows = [
        {"study": study, "recipe": "ours", "seed": seed} | dict.fromkeys(SHOWN, value)
        for (study, seed), value in scores.items()
    ]
    rows += [
        {"study": s, "recipe": "SVD-50", "seed": None} | dict.fromkeys(SHOWN, 0.25) for s in "ab"
    ]
    rows = [row | {"num_scored": {"a": 7, "b": 12}[row["study"]]} for row in rows]
    lines = crossvalidation_table(rows).splitlines()
    assert lines[0].split() == ["macro_f1", "ours", "SVD-50", "cells"]
    assert lines[1].split() == ["a", "0.600", "±", "0.141", "0.250", "7"]
    assert lines[3].split() == ["mean", "0.400", "±", "0.141", "0.250"]


def test_the_command_prints_the_table_and_writes_the_rows(tmp_path, capsys):
    file, out = tmp_path / "cells.h5ad", tmp_path / "cv" / "rows.json"
    make_adata(160).write_h5ad(file)
    flags = ["--hidden-dim", "16", "--latent-dim", "4", "--batch-size", "32", "--max-epochs", "1"]
    main(["crossvalidate", str(file), "--label-key", "cell_type", "--study-key", "study", *flags,
          "--steps-per-epoch", "2", "--directory", str(tmp_path / "cv"), "--studies", "study_0",
          "--seeds", "1", "--beside-scimilarity", "--no-baselines", "--quiet",
          "--out", str(out)])  # fmt: skip
    assert capsys.readouterr().out.split()[:3] == ["macro_f1", "jaxmetric", "SCimilarity"]
    rows = json.loads(out.read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["jaxmetric", "SCimilarity"]
