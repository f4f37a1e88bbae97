"""Embeddings into files: the same as of cells in memory, whole or not at all, however large the file."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from conftest import DEVICES
from made_up import make_adata, many_cells, measured, write
from small_fit import CONFIG, KEYS

import jaxmetric as jm
from jaxmetric.model import embed_file as module
from jaxmetric.model import forward


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    cells = jm.read_cells(make_adata(200), **KEYS)
    return jm.fit(cells, CONFIG, devices=DEVICES[:1])


@pytest.fixture
def small(monkeypatch):
    """Blocks of some cells, batches of fewer, and rows copied a few at a time."""
    monkeypatch.setattr("jaxmetric.cells.source.BLOCK", 300)
    monkeypatch.setattr("jaxmetric.model.forward.BATCH", 16)
    monkeypatch.setattr(module, "ROWS", 20)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, lambda X: X.toarray()])
@pytest.mark.parametrize("place", ["copy", "itself"])
def test_embeddings_are_those_of_cells_in_memory(model, tmp_path, suffix, form, place, small):
    adata = make_adata(77, seed=5)
    expected = model.embed(adata)
    adata.X = form(adata.X)
    adata.obsm["other"] = np.ones((77, 2))
    file = write(adata, tmp_path / f"in{suffix}")
    out = tmp_path / f"out{suffix}" if place == "copy" else None
    np.testing.assert_allclose(model.embed(file), expected, atol=1e-6)
    for _ in range(2 if out is None else 1):
        found = jm.embed_file(model, file, out, progress=False)
    opened = anndata.read_zarr(found) if suffix == ".zarr" else anndata.read_h5ad(found)
    np.testing.assert_allclose(opened.obsm["X_jaxmetric"], expected, atol=1e-6)
    np.testing.assert_array_equal(opened.obsm["other"], 1)
    np.testing.assert_array_equal(np.asarray(opened.to_df()), np.asarray(adata.to_df()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({file.name, found.name})


def test_a_store_gets_embeddings_and_stays_one(model, tmp_path, small):
    file = write(make_adata(77), tmp_path / "in.h5ad")
    jm.prepare(file, tmp_path / "store", **KEYS, progress=False)
    expected = model.embed(file)
    np.testing.assert_allclose(model.embed(tmp_path / "store"), expected, atol=1e-6)
    jm.embed_file(model, tmp_path / "store", tmp_path / "only.h5ad", progress=False)
    only = anndata.read_h5ad(tmp_path / "only.h5ad")
    np.testing.assert_allclose(only.obsm["X_jaxmetric"], expected, atol=1e-6)
    assert only.X is None
    assert only.obs["study"].tolist() == anndata.read_h5ad(file).obs["study"].tolist()
    jm.embed_file(model, tmp_path / "store", progress=False)
    found = anndata.read_zarr(tmp_path / "store")
    np.testing.assert_allclose(found.obsm["X_jaxmetric"], expected, atol=1e-6)
    assert len(jm.read_cells(tmp_path / "store")) == 77  # its checksums still hold


class KilledError(Exception):
    pass


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
def test_what_was_cut_short_goes_on_with_the_cells_it_was_at(
    model, tmp_path, small, form, monkeypatch
):
    adata = make_adata(77)
    adata.X = form(adata.X)
    file = write(adata, tmp_path / "in.h5ad")
    before = file.read_bytes()
    batches = []

    def dying(*arguments, embed=forward.embed):
        batches.append(1)
        if len(batches) == 4:
            raise KilledError
        return embed(*arguments)

    monkeypatch.setattr(forward, "embed", dying)
    with pytest.raises(KilledError):
        jm.embed_file(model, file, progress=False)
    assert file.read_bytes() == before
    jm.embed_file(model, file, progress=False)
    assert len(batches) == 4 + 3  # of five batches of 16, two were saved
    monkeypatch.undo()
    found = anndata.read_h5ad(file).obsm["X_jaxmetric"]
    np.testing.assert_allclose(found, model.embed(make_adata(77)), atol=1e-6)


def test_links_and_permissions_stay_as_they_are(model, tmp_path):
    file = write(make_adata(50), tmp_path / "in.h5ad")
    file.chmod(0o600)
    (tmp_path / "link.h5ad").symlink_to(file)
    jm.embed_file(model, tmp_path / "link.h5ad", progress=False)
    assert (tmp_path / "link.h5ad").is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "X_jaxmetric" in anndata.read_h5ad(file).obsm


def test_a_file_that_changes_meanwhile_is_not_replaced(model, tmp_path, monkeypatch):
    file = write(make_adata(50), tmp_path / "in.h5ad")

    def changing(group, z, into=module._into):
        into(group, z)
        write(make_adata(60), file)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_into", changing)
        with pytest.raises(ValueError, match=r"in\.h5ad was changed while it was embedded"):
            jm.embed_file(model, file, progress=False)
    assert anndata.read_h5ad(file).n_obs == 60
    jm.embed_file(model, file, progress=False)
    assert anndata.read_h5ad(file).obsm["X_jaxmetric"].shape == (60, 4)


def test_a_swap_cut_short_leaves_no_embedding_that_is_none(model, tmp_path, small, monkeypatch):
    file = write(make_adata(30), tmp_path / "in.zarr")
    jm.embed_file(model, file, progress=False)

    def cut_short(new, place, old):
        place.rename(old)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_swap", cut_short)
        with pytest.raises(KilledError):
            jm.embed_file(model, file, progress=False)
    assert "X_jaxmetric" not in anndata.read_zarr(file).obsm
    jm.embed_file(model, file, progress=False)
    assert "X_jaxmetric" in anndata.read_zarr(file).obsm


def test_an_old_zarr_is_a_clear_error(model, tmp_path, monkeypatch):
    file = write(make_adata(30), tmp_path / "in.zarr")
    monkeypatch.setattr(zarr, "__version__", "2.18.7")
    with pytest.raises(ValueError, match="writing to a zarr folder needs zarr 3"):
        jm.embed_file(model, file, progress=False)
    found = anndata.read_h5ad(jm.embed_file(model, file, tmp_path / "out.h5ad", progress=False))
    np.testing.assert_allclose(found.obsm["X_jaxmetric"], model.embed(make_adata(30)), atol=1e-6)


def test_values_that_are_none_are_called_so(model, tmp_path):
    X = make_adata(30).X.toarray()
    X[0, 0] = np.nan
    file = write(anndata.AnnData(X, var=make_adata(30).var), tmp_path / "in.h5ad")
    with pytest.raises(ValueError, match="1 values that are NaN or infinite"):
        model.embed(file)


def test_files_that_cannot_be_embedded_are_left_as_they_are(model, tmp_path, small):
    X = make_adata(60).X.toarray()
    X[50:] += 0.5
    file = write(anndata.AnnData(X, var=make_adata(60).var), tmp_path / "in.h5ad")
    with pytest.raises(ValueError, match=r"in\.h5ad: X begins with whole numbers, .* fractions"):
        model.embed(file)
    other = write(make_adata(9)[:, :3].copy(), tmp_path / "few.h5ad")
    with pytest.raises(ValueError, match=r"has only 3 of the 40 genes"):
        jm.embed_file(model, other, progress=False)
    with pytest.raises(ValueError, match=r"few\.h5ad exists"):
        jm.embed_file(model, file, other)
    with pytest.raises(ValueError, match="no such folder"):
        jm.embed_file(model, file, tmp_path / "none" / "out.h5ad")


SCRIPT = """
import sys
import jaxmetric as jm
from made_up import peak
from jaxmetric.cells import source
source.BLOCK = 2**16
model = jm.load(sys.argv[1])
print("started", flush=True)
jm.embed_file(model, sys.argv[2], sys.argv[3], progress=False)
print(peak(), flush=True)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    few, many = (many_cells(count, tmp_path / f"{count}.h5ad") for count in (2000, 20_000))
    cells = jm.read_cells(few, **KEYS).select(np.arange(200))
    model = jm.fit(cells, CONFIG, devices=DEVICES[:1])
    model.save(tmp_path / "model")
    peak = [
        measured(SCRIPT, tmp_path / "model", path, tmp_path / f"out_{path.name}")
        for path in (few, many)
    ]
    assert many.stat().st_size > 60e6
    assert peak[1] - peak[0] < 45  # MB, of 65 MB more values
