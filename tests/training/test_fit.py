import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import DEVICES
from made_up import make_adata
from small_fit import CONFIG, KEYS, same

import jaxmetric as jm


@pytest.fixture(scope="module")
def cells():
    return jm.read_cells(make_adata(200), **KEYS)


def test_learns_and_scores_held_out_cells_each_epoch(cells, device):
    changes = {"max_epochs": 8, "steps_per_epoch": 20, "learning_rate": 5e-3}
    config = jm.Config(**CONFIG.to_dict() | changes)
    model = jm.fit(cells, config, validation=["study_2"], devices=device)
    history = model.history
    assert history["epoch"].tolist() == list(range(1, 9))
    assert history["mse"].iloc[-1] < 0.8 * history["mse"].iloc[0]
    assert history["val_silhouette"].iloc[-1] > history["val_silhouette"].iloc[0]
    expected = (1 - history["val_silhouette"]) / 2 + history["val_nmse"]
    np.testing.assert_allclose(history["val_evaluation_metric"], expected)
    held_out = cells.select(cells.in_studies(["study_2"]))
    scores = model.evaluate(held_out, cells.select(~cells.in_studies(["study_2"])))
    assert scores["accuracy"] > 0.6
    assert scores["nmse"] == pytest.approx(history["val_nmse"].iloc[-1], rel=1e-4)
    assert scores["silhouette"] == pytest.approx(history["val_silhouette"].iloc[-1], abs=1e-4)
    assert {"macro_f1", "mse", "num_scored"} <= scores.keys()
    assert {"accuracy", "macro_f1"} <= scores["beside"]["SVD-50"].keys()


def test_tensorboard_gets_every_metric(cells, device, tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    model = jm.fit(cells, CONFIG, directory=tmp_path, tensorboard=True, devices=device)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, points = file.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, an event, its checksum
        end = 12 + int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12:end])
        points |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[end + 4 :]
    for row in model.history.to_dict("records"):
        for name in row.keys() - {"epoch", "step"}:
            assert points[name, row["step"]] == pytest.approx(row[name], rel=1e-6)
    with pytest.raises(ValueError, match="needs a directory"):
        jm.fit(cells, CONFIG, tensorboard=True, devices=device)


def test_an_interrupted_run_goes_on_bit_by_bit(cells, device, tmp_path):
    whole = jm.fit(
        cells, CONFIG, directory=tmp_path / "whole", validation=["study_0"], devices=device
    )

    class Stopped(Exception):
        pass

    from jaxmetric.training.run import Run

    def stop_in_epoch_2(run, snapshot, step, progress, save=Run.save):
        save(run, snapshot, step, progress)
        if step == 8:
            with (run.directory / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": 3}\n')  # a row whose checkpoint was never written
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", stop_in_epoch_2)
        with pytest.raises(Stopped):
            jm.fit(
                cells, CONFIG, directory=tmp_path / "part", validation=["study_0"], devices=device
            )
    part = jm.fit(
        cells, CONFIG, directory=tmp_path / "part", validation=["study_0"], devices=device
    )
    same(whole, part)
    rows = (tmp_path / "part" / "metrics.jsonl").read_text()
    assert rows == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert [json.loads(row)["epoch"] for row in rows.splitlines()] == [1, 2, 3]
    same(whole, jm.fit(cells, CONFIG, directory=tmp_path / "part", validation=["study_0"]))
    same(whole, jm.load(tmp_path / "part"))


def test_a_directory_of_another_run_is_refused_and_left_alone(cells, device, tmp_path):
    run = tmp_path / "run"
    jm.fit(cells, CONFIG, directory=run, devices=device)
    before = (run / "metrics.jsonl").read_text()
    other = jm.Config(**{**CONFIG.to_dict(), "margin": 0.1})
    with pytest.raises(ValueError, match=r"another run \(config.margin: there 0.3, here 0.1\)"):
        jm.fit(cells, other, directory=run)
    with pytest.raises(ValueError, match=r"another run .*training cells"):
        jm.fit(cells.select(np.arange(150)), CONFIG, directory=run)
    with pytest.raises(ValueError, match=r"another run .*validation cells"):
        jm.fit(cells, CONFIG, directory=run, validation=["study_1"])
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("1")
    with pytest.raises(ValueError, match="not the directory of a run"):
        jm.fit(cells, CONFIG, directory=foreign)
    assert (run / "metrics.jsonl").read_text() == before
    (run / "run.json").write_text('{"format')
    with pytest.raises(ValueError, match=re.escape("run.json is truncated or was changed")):
        jm.fit(cells, CONFIG, directory=run)


def test_the_number_of_devices_does_not_matter(cells, monkeypatch):
    """1e-3: Adam scales rounding errors in the biases before a batch normalisation to full steps."""
    one, eight = (
        jm.fit(cells, CONFIG, validation=["study_0"], devices=DEVICES[:n]) for n in (1, 8)
    )
    for column in ("loss", "val_loss", "num_triplets", "val_silhouette"):
        np.testing.assert_allclose(
            eight.history[column], one.history[column], rtol=1e-3, err_msg=column
        )
    z = one.embed(cells)
    monkeypatch.setattr(jax, "local_devices", lambda: DEVICES)
    np.testing.assert_allclose(one.embed(cells), z, atol=1e-6)


def test_the_step_compiles_once_and_nothing_is_written_without_a_directory(
    cells, device, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    from jaxmetric.training import feed as module

    traced = []

    def counting(*args, train_step=module.train_step, **kwargs):
        traced.append(1)
        return train_step(*args, **kwargs)

    monkeypatch.setattr(module, "train_step", counting)
    config = dataclasses.replace(CONFIG, hidden_dim=(19,))  # a program that no other test has
    jm.fit(cells, config, validation=["study_0"], devices=device)
    assert len(traced) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sampling", ["weighted", "uniform", "per_class"])
def test_cells_on_the_devices_train_as_those_of_the_host(cells, tmp_path, sampling):
    config = dataclasses.replace(CONFIG, sampling=sampling, cells_per_class=8)
    devices = DEVICES[:2]
    expected = jm.fit(cells, config, devices=devices)
    model = jm.fit(cells, config, devices=devices, data_on="device", directory=tmp_path / "run")
    for column in ("loss", "num_triplets", "num_nonzero"):
        np.testing.assert_allclose(model.history[column], expected.history[column], rtol=1e-3)
    with pytest.raises(ValueError, match="data_on must be 'host' or 'device', but is 'disk'"):
        jm.fit(cells, config, data_on="disk")


def test_cells_that_do_not_fit_the_devices_are_refused(cells, monkeypatch):
    monkeypatch.setattr("jaxmetric.training.feed.free_memory", lambda mesh: 1000)
    with pytest.raises(ValueError, match=r"need .* GB on each device, of which .*data_on='host'"):
        jm.fit(cells, CONFIG, data_on="device", devices=DEVICES[:1])


def test_dropped_cells_are_counted_with_their_reason(device, caplog):
    adata = make_adata(160)
    label = adata.obs["cell_type"].astype(object)
    label[:10] = None
    label[10:15] = ["platelet"] * 5
    adata.obs["cell_type"] = label
    adata.obs.loc[adata.obs_names[10:15], "study"] = "study_0"
    counts = adata.X.toarray()
    counts[20:23] = 0
    adata.X = counts
    model = jm.fit(jm.read_cells(adata, **KEYS), CONFIG, devices=device)
    dropped = model.trained_on["dropped"]
    assert dropped == {
        "no label": 10,
        "no counts in the genes": 3,
        "label in one study only (platelet)": 5,
    }
    assert model.trained_on["cells"] == 160 - 18
    assert "dropped 10 of 160 cells: no label" in caplog.text
    assert "platelet" not in model.labels


def test_labels_of_one_study_can_be_coarsened_and_perturbed(device):
    adata = make_adata(
        160, types=("T cell", "B cell", "monocyte", "CD4-positive, alpha-beta T cell")
    )
    adata.obs.loc[adata.obs["cell_type"] == "CD4-positive, alpha-beta T cell", "study"] = "study_0"
    changes = {"singleton_labels": "coarsen", "perturb_labels_fraction": 0.2}
    config = jm.Config(**{**CONFIG.to_dict(), **changes})
    model = jm.fit(jm.read_cells(adata, **KEYS), config, devices=device)
    assert model.labels == ("B cell", "T cell", "monocyte")
    assert model.trained_on["cells"] == 160


def test_a_batch_is_no_larger_than_the_cells_that_there_are(tmp_path, caplog):
    few = jm.read_cells(make_adata(50), **KEYS)
    config = jm.Config(**{**CONFIG.to_dict(), "batch_size": 512, "steps_per_epoch": 0})
    model = jm.fit(few, config, directory=tmp_path / "run", devices=DEVICES[:4])
    assert "batches of 48 cells, all that there are, not of 512" in caplog.text
    assert (model.history["step"] == 1 + np.arange(config.max_epochs)).all()
    again = jm.fit(few, config, directory=tmp_path / "run", devices=DEVICES[:4])
    same(model, again)
    with pytest.raises(ValueError, match="a multiple of 8 cells here, but there are only 4"):
        jm.fit(few.select(np.arange(6)), config, devices=DEVICES[:8])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: a.obs.update({"cell_type": "T cell"}), {}, "at least 2 labels, but has 1"),
        (lambda a: a.obs.update({"study": "one"}), {}, "all cells are of one study.*--study-key"),
        (lambda a: a, {"validation": ["study_9"]}, "no cell is of study 'study_9'"),
        (lambda a: a, {"validation": ["study_0", "study_1", "study_2"]}, "holds out every study"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(change, options, message):
    adata = make_adata(200)
    adata.obs = adata.obs.astype(object)
    if message.startswith("at least"):
        adata.obs["cell_type"] = "T cell"
    elif message.startswith("all cells"):
        adata.obs["study"] = "one"
    validation = options.pop("validation", None)
    config = jm.Config(**{**CONFIG.to_dict(), **options})
    with pytest.raises(ValueError, match=message):
        jm.fit(jm.read_cells(adata, **KEYS), config, validation=validation)


def test_unlabelled_cells_and_wrong_types_are_refused(adata):
    with pytest.raises(ValueError, match=r"no cell has a label.*--label-key"):
        jm.fit(jm.read_cells(adata), CONFIG)
    with pytest.raises(ValueError, match=r"must come from jaxmetric.read_cells.*AnnData"):
        jm.fit(adata, CONFIG)
    config = jm.Config(**{**CONFIG.to_dict(), "batch_size": 30})
    with pytest.raises(ValueError, match="multiple of the number of devices, 8, but is 30"):
        jm.fit(jm.read_cells(adata, **KEYS), config, devices=DEVICES)


@pytest.fixture(scope="module")
def model(cells, device):
    return jm.fit(cells, CONFIG, devices=device)


def test_embeddings_follow_cells_and_genes(model, tmp_path):
    adata = make_adata(50, seed=5)
    z = model.embed(adata)
    assert z.shape == (50, 4)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    shuffled = adata[::-1, np.random.default_rng(0).permutation(40)].copy()
    np.testing.assert_allclose(model.embed(shuffled)[::-1], z, atol=1e-5)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(model.embed(tmp_path / "cells.h5ad"), z)
    assert model.reconstruct(z).shape == (50, 40)
    with pytest.raises(ValueError, match="only 5 of the 40 genes"):
        model.embed(adata[:, :5].copy())


def test_saved_models_load_alike_and_are_not_overwritten(model, adata, tmp_path):
    model.save(tmp_path / "model")
    loaded = jm.load(tmp_path / "model")
    same(model, loaded)
    for name in ("config", "genes", "labels", "label_ids", "ontology_version", "trained_on"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.label_ids == tuple(jm.CellOntology.default().resolve(model.labels))
    np.testing.assert_array_equal(loaded.history, model.history)
    np.testing.assert_array_equal(loaded.embed(adata), model.embed(adata))
    with pytest.raises(ValueError, match="exists"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    same(model, jm.load(tmp_path / "model"))
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="no model directory: it is left"):
        model.save(tmp_path / "data", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model"]


def test_damaged_model_directories_are_named(model, tmp_path):
    model.save(tmp_path / "model")
    arrays = max((tmp_path / "model" / "variables").rglob("*"), key=lambda p: p.stat().st_size)
    relative = arrays.relative_to(tmp_path / "model")

    def damaged(name, damage):
        copy = shutil.copytree(tmp_path / "model", tmp_path / name)
        damage(copy)
        return copy

    cases = {
        "missing": (lambda d: (d / relative).unlink(), f"{relative} is missing"),
        "short": (
            lambda d: (d / relative).write_bytes(arrays.read_bytes()[:-7]),
            f"{relative} is truncated or was changed",
        ),
        "foreign": (lambda d: (d / "notes.txt").write_text("x"), "notes.txt does not belong"),
        "no_json": (lambda d: (d / "model.json").unlink(), "is no model directory"),
        "half_json": (lambda d: (d / "model.json").write_text('{"a'), "model.json is truncated"),
        "other_json": (lambda d: (d / "model.json").write_text("{}"), "must be of format"),
    }
    for name, (damage, message) in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            jm.load(damaged(name, damage))
    with pytest.raises(ValueError, match="is no model directory"):
        jm.load(tmp_path / "nowhere")
