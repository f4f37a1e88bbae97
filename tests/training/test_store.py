"""Training on a store's cells, which stay on disk."""

import dataclasses
import shutil
import signal

import numpy as np
import pytest
import zarr
from conftest import DEVICES
from made_up import make_adata
from small_fit import CONFIG, KEYS, same

import jaxmetric as jm
from jaxmetric.training.watch import Watch

if int(zarr.__version__.partition(".")[0]) < 3:
    pytest.skip("a store needs zarr 3", allow_module_level=True)

ONE_BY_ONE = dataclasses.replace(CONFIG, block_size=1, shuffle_steps=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    make_adata(200).write_h5ad(folder / "cells.h5ad")
    jm.prepare(folder / "cells.h5ad", folder / "store", **KEYS, progress=False)
    return folder / "store"


@pytest.mark.parametrize("data_on", ["host", "device"])
def test_cells_drawn_one_by_one_train_as_those_in_memory_bit_by_bit(store, data_on):
    how = {"validation": ["study_0"], "devices": DEVICES[:2], "data_on": data_on}
    expected = jm.fit(jm.read_cells(make_adata(200), **KEYS), ONE_BY_ONE, **how)
    same(jm.fit(jm.read_cells(store), ONE_BY_ONE, **how), expected)


def test_a_run_on_blocks_of_a_store_goes_on_bit_by_bit(store, device, tmp_path):
    config = dataclasses.replace(CONFIG, block_size=8, shuffle_steps=2)
    cells = jm.read_cells(store)
    expected = jm.fit(cells, config, devices=device)
    jm.fit(cells, config, devices=device, directory=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")  # of three epochs of 4 steps
    same(jm.fit(cells, config, devices=device, directory=tmp_path / "run"), expected)


def test_a_run_fed_from_the_host_goes_on_from_the_device(store, device, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, steps_per_epoch=10, max_epochs=2)
    cells, count = jm.read_cells(store), [0]
    expected = jm.fit(cells, config, devices=device)

    def signalled(*arguments, follow=Watch.steps_under_way):
        count[0] += 1
        if count[0] == 3:
            signal.raise_signal(signal.SIGTERM)
        follow(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "steps_under_way", signalled)
        with pytest.raises(jm.Interrupted):
            jm.fit(cells, config, devices=device, directory=tmp_path / "run")
    how = {"devices": device, "directory": tmp_path / "run", "data_on": "device"}
    model = jm.fit(cells, config, **how)
    np.testing.assert_allclose(model.history["loss"], expected.history["loss"], rtol=1e-3)


def test_cells_without_counts_in_the_genes_are_dropped_as_those_in_memory(store, device, caplog):
    in_memory, genes = jm.read_cells(make_adata(200), **KEYS), [f"gene_{i}" for i in (1, 5, 9)]
    models = [
        jm.fit(cells.with_genes(genes, 0), CONFIG, devices=device)
        for cells in (in_memory, jm.read_cells(store))
    ]
    dropped = [model.trained_on["dropped"] for model in models]
    assert dropped[0]["no counts in the genes"] > 0
    assert dropped[0] == dropped[1]


def test_several_stores_are_read_into_memory(store):
    cells = jm.read_cells([store, store], **KEYS)
    expected = jm.read_cells(make_adata(200), **KEYS).X
    np.testing.assert_array_equal(cells.matrix()[200:].toarray(), expected.toarray())


def test_a_run_refuses_another_store(store, device, tmp_path):
    jm.fit(jm.read_cells(store), CONFIG, devices=device, directory=tmp_path / "run")
    make_adata(200, seed=1).write_h5ad(tmp_path / "other.h5ad")
    jm.prepare(tmp_path / "other.h5ad", tmp_path / "other", **KEYS, progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run .*training cells"):
        jm.fit(
            jm.read_cells(tmp_path / "other"), CONFIG, devices=device, directory=tmp_path / "run"
        )


def test_all_else_takes_a_stores_cells_too(store, device):
    cells, expected = jm.read_cells(store), jm.read_cells(make_adata(200), **KEYS)
    model = jm.fit(expected, CONFIG, devices=device)
    np.testing.assert_array_equal(model.embed(cells), model.embed(expected))
    query = cells.in_studies(["study_1"])
    scores = model.evaluate(cells.select(query), cells.select(~query))
    wanted = model.evaluate(expected.select(query), expected.select(~query))
    assert scores == wanted
    plain = store.parent / "plain"
    jm.prepare(store.parent / "cells.h5ad", plain, **KEYS, ontology=None, progress=False)
    np.testing.assert_array_equal(model.embed(plain), model.embed(cells))
    genes = [*cells.genes[::2], "absent"]
    np.testing.assert_array_equal(
        jm.read_cells(store, genes=genes).matrix().toarray(),
        expected.with_genes(genes).matrix().toarray(),
    )
    with pytest.raises(ValueError, match="it has no layers or gene keys"):
        jm.read_cells(store, layer="raw")
    with pytest.raises(ValueError, match=r"no label column obs\['kind'\]; it has: cell_type"):
        jm.read_cells(store, label_key="kind")


def test_a_folder_of_files_is_several_files(tmp_path):
    for i in range(3):
        make_adata(30, seed=i).write_h5ad(tmp_path / f"{i}.h5ad")
    (tmp_path / "notes.txt").write_text("")
    cells = jm.read_cells(tmp_path, label_key="cell_type")
    assert len(cells) == 90
    assert len(cells.study_names) == 3  # each file is a study
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.h5ad files or \.zarr folders in it"):
        jm.read_cells(tmp_path / "empty")
