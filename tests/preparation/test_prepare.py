"""Files into a store: what is kept, what is refused, and what a kill leaves."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from made_up import make_adata, many_cells, measured, write

import jaxmetric as jm
from jaxmetric import prepare as prepare_function
from jaxmetric.preparation import prepare
from jaxmetric.preparation import write as write_module
from jaxmetric.preparation.report import report_table

if int(zarr.__version__.partition(".")[0]) < 3:
    pytest.skip("a store needs zarr 3", allow_module_level=True)

KEYS = {"label_key": "cell_type", "study_key": "study"}
QUIET = {**KEYS, "progress": False}
FORMS = {
    "csr": lambda adata: adata,
    "csc": lambda adata: with_x(adata, sp.csc_matrix(adata.X)),
    "dense": lambda adata: with_x(adata, adata.X.toarray()),
    "reversed": lambda adata: adata[:, ::-1].copy(),
    "layer": lambda adata: with_layer(adata, sp.csc_matrix(adata.X)),
    "raw": lambda adata: with_raw(adata),
    "whole numbers": lambda adata: with_x(adata, adata.X.astype(np.int64)),
}


def with_x(adata, X):
    adata.X = X
    return adata


def with_layer(adata, counts):
    adata.layers["counts"] = counts
    adata.X = sp.csr_matrix(np.log1p(counts.toarray()))
    return adata


def with_raw(adata):
    adata.raw = adata.copy()
    return with_x(adata[:, :20].copy(), sp.csr_matrix(np.log1p(adata.X.toarray()[:, :20])))


@pytest.fixture
def files(tmp_path):
    """Three files of 40 genes, and one of 30 of these."""
    made = [make_adata(50 + i, seed=i) for i in range(3)] + [make_adata(40, 30, seed=3)]
    return [write(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate(made)]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", FORMS)
def test_a_store_holds_what_the_files_hold(tmp_path, form, suffix, monkeypatch):
    monkeypatch.setattr("jaxmetric.cells.source.BLOCK", 300)  # some cells at a time
    monkeypatch.setattr("jaxmetric.preparation.write.SHARD", 512)
    monkeypatch.setattr("jaxmetric.cells.store.SHARD", 512)
    monkeypatch.setattr("jaxmetric.cells.store.CHUNK", 64)
    one, two = make_adata(60), make_adata(50, seed=1)
    paths = [
        write(one.copy(), tmp_path / f"one{suffix}"),
        write(FORMS[form](two.copy()), tmp_path / f"two{suffix}"),
    ]
    report = prepare_function(paths, tmp_path / "store", **QUIET)
    assert (report["cells"], report["kept"], report["genes"]) == (110, 110, 40)
    expected = jm.read_cells([one, two], **KEYS)
    cells = jm.read_cells(tmp_path / "store")
    assert cells.describe() == expected.describe()
    for name in ("values", "genes", "label_names", "study_names", "value_type"):
        assert getattr(cells, name) == getattr(expected, name)
    np.testing.assert_array_equal(cells.labels, expected.labels)
    np.testing.assert_array_equal(cells.studies, expected.studies)
    np.testing.assert_array_equal(cells.matrix().toarray(), expected.X.toarray())
    opened = anndata.read_zarr(tmp_path / "store")
    np.testing.assert_array_equal(opened.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(
        opened.obs["cell_type"], [*one.obs["cell_type"], *two.obs["cell_type"]]
    )
    assert opened.obs_names[[0, -1]].tolist() == ["cell_0-one", "cell_49-two"]
    assert opened.obs["source_file"].unique().tolist() == ["one", "two"]


def test_any_rows_of_a_store_are_read(files, tmp_path):
    prepare_function(files[:3], tmp_path / "store", **QUIET)
    cells = jm.read_cells(tmp_path / "store")
    X, generator = cells.matrix().toarray(), np.random.default_rng(0)
    for _ in range(20):
        rows = generator.integers(0, len(cells), generator.integers(0, 60))
        np.testing.assert_array_equal(cells.X.read(rows).toarray(), X[rows])
        mask = generator.random(len(cells)) < 0.3
        part = cells.select(mask)
        np.testing.assert_array_equal(part.lengths, (X[mask] != 0).sum(1))
        np.testing.assert_array_equal(part.matrix().toarray(), X[mask])
        order = generator.permutation(40)[:25]
        moved = part.with_genes([cells.genes[i] for i in order]).with_genes(
            [cells.genes[i] for i in order[::-1][:20]]
        )
        np.testing.assert_array_equal(moved.matrix().toarray(), X[mask][:, order[::-1][:20]])


@pytest.mark.parametrize(
    ("genes", "expected"),
    [
        ("intersection", [f"gene_{i}" for i in range(30)]),
        ("union", [f"gene_{i}" for i in range(40)]),
        (["gene_7", "gene_2", "gene_39"], ["gene_7", "gene_2", "gene_39"]),
    ],
)
def test_genes_are_of_one_order(files, tmp_path, genes, expected):
    prepare_function([files[0], files[3]], tmp_path / "store", **QUIET, genes=genes)
    cells = jm.read_cells(tmp_path / "store")
    assert list(cells.genes) == expected
    frames = [anndata.read_h5ad(path).to_df() for path in (files[0], files[3])]
    whole = pd.concat([frame.reindex(columns=expected, fill_value=0) for frame in frames])
    np.testing.assert_array_equal(cells.matrix().toarray(), whole)


def test_filters_keep_what_scanpy_would_and_report_the_rest(tmp_path):
    adata = make_adata(200)
    adata.var_names = ["MT-A", "mt-B", *adata.var_names[2:]]
    adata.obs["sample"] = [f"s{i % 7}" for i in range(200)]
    write(adata, tmp_path / "a.h5ad")
    adata.var["mt"] = adata.var_names.str.upper().str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, inplace=True)
    filters = jm.Filters(
        min_counts=30,
        min_genes=17,
        max_mito=0.1,
        exclude_studies=("study_1",),
        exclude_samples=("s3",),
        sample_key="sample",
    )
    obs, left = adata.obs, np.ones(200, bool)
    expected = {}
    for reason, dropped in {
        "study excluded": obs["study"] == "study_1",
        "sample excluded": obs["sample"] == "s3",
        "fewer than 30 counts": obs["total_counts"] < 30,
        "fewer than 17 genes": obs["n_genes_by_counts"] < 17,
        "mitochondrial share above 0.1": obs["pct_counts_mt"] > 10,
    }.items():
        expected[reason] = int((left & dropped).sum())
        left &= ~dropped
    assert all(expected.values())
    report = prepare_function(tmp_path / "a.h5ad", tmp_path / "store", **QUIET, filters=filters)
    assert report["files"][0]["dropped"] == expected
    assert report["kept"] == left.sum()
    assert json.loads((tmp_path / "store.report.json").read_text()) == report
    kept = anndata.read_zarr(tmp_path / "store")
    assert kept.obs_names.tolist() == obs.index[left].tolist()
    np.testing.assert_array_equal(kept.X.toarray(), adata.X.toarray()[left])
    assert "mitochondrial share above 0.1" in report_table(report)


def test_labels_become_terms_and_those_that_do_not_are_reported(tmp_path):
    adata = make_adata(40)
    label = adata.obs["cell_type"].astype(object).replace("B cell", "CL:0000236")
    label[:5], label[5:8] = "odd one", [None, "unknown", ""]
    adata.obs["cell_type"] = label.astype(str).where(label.notna(), None)
    write(adata, tmp_path / "a.h5ad")
    report = prepare_function(tmp_path / "a.h5ad", tmp_path / "store", **QUIET)
    assert report["files"][0]["labels that are no terms"] == {"odd one": 5}
    assert report["files"][0]["cells without label"] == 3
    assert "odd one" in report_table(report)
    cells = jm.read_cells(tmp_path / "store")
    assert (cells.labels[:8] == -1).all()
    assert cells.label_names == ("B cell", "T cell", "monocyte", "natural killer cell")
    kept = anndata.read_zarr(tmp_path / "store").obs
    assert kept["cell_type_original"].iloc[0] == "odd one"
    prepare_function(tmp_path / "a.h5ad", tmp_path / "plain", **QUIET, ontology=None)
    plain = jm.read_cells(tmp_path / "plain", ontology=None)
    assert "odd one" in plain.label_names
    assert "CL:0000236" in plain.label_names


def test_ensembl_ids_and_symbols_go_together_where_var_has_both(tmp_path):
    symbols, ids = make_adata(30), make_adata(30, seed=1)
    names = [f"ENSG{i:011d}" for i in range(38)] + ["ENSG00000000001.5_PAR_Y", "RP11-34P13.7"]
    ids.var_names = [f"{name}.{i % 3}" if i < 38 else name for i, name in enumerate(names)]
    paths = [write(symbols, tmp_path / "a.h5ad"), write(ids, tmp_path / "b.h5ad")]
    with pytest.raises(
        ValueError, match=r"mix kinds of gene names.*a.h5ad: gene symbols; .*Ensembl"
    ):
        prepare_function(paths, tmp_path / "store", **QUIET)
    symbols.var["ensembl_id"] = names
    write(symbols, paths[0])
    prepare_function(paths, tmp_path / "store", **QUIET)
    cells = jm.read_cells(tmp_path / "store")
    assert list(cells.genes) == names
    assert jm.read_cells(paths[1], genes=names).missing_genes == ()  # versions do not matter
    expected = sp.vstack([symbols.X, ids.X]).toarray()
    np.testing.assert_array_equal(cells.matrix().toarray(), expected)
    ids.var["feature_name"] = [f"gene_{i}" for i in range(40)]
    write(ids, paths[1])
    prepare_function(paths, tmp_path / "named", **QUIET)
    assert jm.read_cells(tmp_path / "named").genes[0] == "gene_0"  # as the first file has them


def truncated(adata, path):
    write(adata, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(adata, path):
    """A file that opens, and whose values are not all there."""
    adata.write_h5ad(path, compression="gzip")
    content = bytearray(path.read_bytes())
    at = content.find(b"\x78\x5e")  # a deflated chunk
    while at >= 0:
        content[at + 2 : at + 40] = bytes(38)
        at = content.find(b"\x78\x5e", at + 40)
    path.write_bytes(content)


BAD = {
    "truncated": (truncated, "is not a readable AnnData file"),
    "damaged": (damaged, "truncated or damaged|not a readable AnnData file"),
    "no label column": (
        lambda a, path: rename_obs(a, path, "cell_type"),
        r"no label column obs\['cell_type'\]; it has: other, study",
    ),
    "no study column": (
        lambda a, path: rename_obs(a, path, "study"),
        r"no study column obs\['study'\]",
    ),
    "scaled": (lambda a, path: write(with_x(a, a.X.toarray() - 1), path), "negative values"),
    "missing values": (lambda a, path: write(with_nan(a), path), "NaN or infinite"),
    "not there": (lambda a, path: None, "no such file"),
    "no AnnData": (lambda a, path: path.write_text("text"), "is not a readable AnnData file"),
}


def rename_obs(adata, path, key):
    adata.obs = adata.obs.rename(columns={key: "other"})
    write(adata, path)


def with_nan(adata):
    X = adata.X.toarray()
    X[3, 4] = np.nan
    return with_x(adata, X)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_stops_before_anything_is_written_or_is_left_out(files, tmp_path, kind):
    make, match = BAD[kind]
    path = tmp_path / "bad.h5ad"
    make(make_adata(), path)
    if kind == "not there":
        with pytest.raises(ValueError, match=match):
            prepare_function([*files[:2], path], tmp_path / "store", **QUIET)
        return
    with pytest.raises(ValueError, match=f"1 of 3 files cannot be used, .*bad.h5ad.*({match})"):
        prepare_function([files[0], path, files[1]], tmp_path / "store", **QUIET)
    assert not (tmp_path / "store").exists()
    report = prepare_function(
        [files[0], path, files[1]], tmp_path / "store", **QUIET, skip_bad=True
    )
    assert list(report["left out"]) == [str(path)]
    assert report["kept"] == 101
    assert len(jm.read_cells(tmp_path / "store")) == 101


def test_counts_and_logged_values_do_not_mix(files, tmp_path):
    adata = make_adata(30)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    path = write(adata, tmp_path / "logged.h5ad")
    with pytest.raises(
        ValueError, match=r"mix counts and .*0.h5ad: counts, .*logged.h5ad: lognorm"
    ):
        prepare_function([files[0], path], tmp_path / "store", **QUIET)
    assert not (tmp_path / "store").exists()
    prepare_function(path, tmp_path / "logged", **QUIET)
    cells = jm.read_cells(tmp_path / "logged")
    assert (cells.values, cells.value_type) == ("lognorm", np.float32)
    with pytest.raises(ValueError, match="min_counts and max_mito are of counts"):
        prepare_function(path, tmp_path / "x", **QUIET, filters=jm.Filters(min_counts=5))


def test_an_old_zarr_is_a_clear_error(files, tmp_path, monkeypatch):
    prepare_function(files[0], tmp_path / "store", **QUIET)
    monkeypatch.setattr(zarr, "__version__", "2.18.7")
    message = r"a training store needs zarr 3, but version 2\.18\.7 is installed"
    with pytest.raises(ValueError, match=message):
        prepare_function(files[0], tmp_path / "other", **QUIET)
    with pytest.raises(ValueError, match=message):
        jm.read_cells(tmp_path / "store")


def test_options_that_cannot_be_are_refused(files, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists: choose another folder"):
        prepare_function(files, tmp_path / "there", **QUIET)
    with pytest.raises(ValueError, match=r"0.h5ad is given more than once"):
        prepare_function([files[0], files[0]], tmp_path / "store", **QUIET)
    with pytest.raises(ValueError, match=r"no .h5ad files"):
        prepare_function(tmp_path / "there", tmp_path / "store", **QUIET)
    with pytest.raises(ValueError, match="'intersection', 'union' or a list of names"):
        prepare_function(files, tmp_path / "store", **QUIET, genes="all")
    with pytest.raises(
        ValueError, match=r"columns of obs must differ, .* study, source_file, study"
    ):
        prepare_function(files, tmp_path / "x", **QUIET, filters=jm.Filters(sample_key="study"))
    with pytest.raises(ValueError, match="exclude_samples needs sample_key"):
        jm.Filters(exclude_samples=("a",))
    with pytest.raises(ValueError, match=r"max_mito must be a share from 0 to 1, but is 5"):
        jm.Filters(max_mito=5)
    with pytest.raises(ValueError, match=r"no gene named MT-\.\.\."):
        prepare_function(files, tmp_path / "new", **QUIET, filters=jm.Filters(max_mito=0.1))


@pytest.mark.parametrize("name", ["X/data/c/0", "obs/cell_type/codes/c/0", "X/indptr/c/0"])
def test_a_changed_byte_is_found(files, tmp_path, name):
    prepare_function(files[:2], tmp_path / "store", **QUIET)
    path = tmp_path / "store" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"store.*(damaged|was changed).*[Pp]repare"):
        jm.read_cells(tmp_path / "store").matrix()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("piece", [0, 3, 7, 12])
def test_what_was_cut_short_goes_on_with_the_file_it_was_at(files, tmp_path, piece, monkeypatch):
    monkeypatch.setattr("jaxmetric.preparation.write.SHARD", 256)
    monkeypatch.setattr("jaxmetric.cells.store.SHARD", 256)
    monkeypatch.setattr("jaxmetric.cells.store.CHUNK", 64)
    monkeypatch.setattr("jaxmetric.cells.source.BLOCK", 200)
    prepare_function(files, tmp_path / "whole", **QUIET)
    writer = write_module.ValueWriter
    appended, scanned = [], []

    def dies(self, X, append=writer.append):
        if len(appended) == piece:
            raise KilledError
        append(self, X)
        appended.append(1)

    def counting(path, *arguments, scan=prepare.scan):
        scanned.append(path)
        return scan(path, *arguments)

    monkeypatch.setattr(prepare, "scan", counting)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "append", dies)
        with pytest.raises(KilledError):
            prepare_function(files, tmp_path / "store", **QUIET)
    assert not (tmp_path / "store").exists()
    if any((tmp_path / ".store.partial" / "parts").iterdir()):
        with pytest.raises(ValueError, match=r"another preparation .*\(min_counts differ\)"):
            prepare_function(files, tmp_path / "store", **QUIET, filters=jm.Filters(min_counts=1))
    prepare_function(files, tmp_path / "store", **QUIET)
    assert scanned == files  # once, though there were two calls
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("where", ["write_frame", "write_anndata", "write_checksums"])
def test_what_was_cut_short_at_the_end_is_ended(files, tmp_path, where, monkeypatch):
    prepare_function(files, tmp_path / "whole", **QUIET)

    write = getattr(prepare, where)

    def dies(*arguments):
        write(*arguments)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(prepare, where, dies)
        with pytest.raises(KilledError):
            prepare_function(files, tmp_path / "store", **QUIET)
    prepare_function(files, tmp_path / "store", **QUIET)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_what_nothing_vouches_for_is_begun_anew(files, tmp_path, monkeypatch):
    """A folder of work without its state, or whose store was moved away, or for another plan."""
    prepare_function(files, tmp_path / "whole", **QUIET)

    def cut_short(where, **options):
        with monkeypatch.context() as patch:
            patch.setattr(prepare, where, lambda *arguments, **options: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare_function(files, tmp_path / "store", **QUIET, **options)

    work = tmp_path / ".store.partial"
    cut_short("write_frame", ontology=None)
    (work / "state.json").unlink()
    prepare_function(files, tmp_path / "store", **QUIET)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    (tmp_path / "store").rename(tmp_path / "first")
    cut_short("discard")  # after the store was moved to its place
    (tmp_path / "store").rename(tmp_path / "second")
    prepare_function(files, tmp_path / "store", **QUIET)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    (tmp_path / "store").rename(tmp_path / "third")

    def unreadable(path, *arguments, scan=prepare.scan):
        if path == files[1]:
            raise OSError("input/output error")
        return scan(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "scan", unreadable)
        cut_short("write_frame", skip_bad=True)
    report = prepare_function(files, tmp_path / "store", **QUIET, skip_bad=True)
    assert not report["left out"]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_files_go_by_where_they_are_not_by_how_that_is_spelled(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {"label_key": "cell_type", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write_once", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_function(["0.h5ad", "1.h5ad"], "store", **keys)
    report = prepare_function(files[:2], tmp_path / "store", **keys)
    cells = jm.read_cells("store")
    assert cells.study_names == ("0", "1")  # without study_key each file is one
    assert report["studies"] == 2
    monkeypatch.chdir("/")
    assert len(cells.matrix().indptr) == 102


def contents(store):
    """All files, byte by byte."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


SCRIPT = """
import sys
import jaxmetric as jm
from made_up import peak
from jaxmetric.cells import source
source.BLOCK = 2**16
from jaxmetric.cells import store
from jaxmetric.preparation import write
store.SHARD = write.SHARD = 2**18
print("started", flush=True)
jm.prepare(sys.argv[1:-1], sys.argv[-1], label_key="cell_type", study_key="study", progress=False)
print(peak(), flush=True)
"""


def prepared_apart(paths, out, kill_after=None):
    return measured(SCRIPT, *paths, out, kill_after=kill_after)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_memory_does_not_grow_with_the_cells(tmp_path, form):
    few, many = tmp_path / "few" / f"{form}.h5ad", tmp_path / "many" / f"{form}.h5ad"
    for path, count in ((few, 2000), (many, 20_000)):
        path.parent.mkdir()
        many_cells(count, path)
    peak = [prepared_apart([path], tmp_path / f"{path.parent.name}_store") for path in (few, many)]
    assert many.stat().st_size > 60e6
    assert peak[1] - peak[0] < 45  # MB, of 65 MB more values


def test_a_killed_preparation_goes_on(tmp_path):
    paths = [many_cells(3000, tmp_path / f"{i}.h5ad") for i in range(3)]
    seconds = iter((0.1, 0.2, 0.4, 0.8))
    while not (tmp_path / "store").exists():
        prepared_apart(paths, tmp_path / "store", next(seconds, None))
    assert not (tmp_path / ".store.partial").exists()
    prepare_function(paths, tmp_path / "whole", **QUIET)
    same = [jm.read_cells(tmp_path / name) for name in ("store", "whole")]
    assert same[0].X.fingerprint == same[1].X.fingerprint
    assert (same[0].matrix() != same[1].matrix()).nnz == 0
