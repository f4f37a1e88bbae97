import logging
import re

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import recorded
from made_up import TYPES, make_adata

import jaxmetric as jm
from jaxmetric.cells.cells import log_normalized

KEYS = {"label_key": "cell_type", "study_key": "study"}


def in_form(adata, form, tmp_path):
    """The same cells as another matrix type, or on disk."""
    adata = adata.copy()
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form in ("csc_matrix", "csr_array", "csc_array"):
        adata.X = getattr(sp, form)(adata.X)
    elif form == "integers":
        adata.X = adata.X.astype(np.int64)
    elif form == "view":
        return anndata.concat([adata, adata], index_unique="-")[: len(adata)]
    elif form == "zarr":
        adata.write_zarr(tmp_path / "cells.zarr")
        return tmp_path / "cells.zarr"
    elif form.startswith("backed"):
        if form == "backed dense":
            adata.X = adata.X.toarray()
        elif form == "backed csc":
            adata.X = sp.csc_matrix(adata.X)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        return anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    return adata


FORMS = ["dense", "csc_matrix", "csr_array", "csc_array", "integers", "view", "zarr"]
BACKED = ["backed csr", "backed csc", "backed dense"]


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("form", [*FORMS, *BACKED])
def test_all_forms_of_a_matrix_are_the_same_cells(form, adata, tmp_path):
    source = in_form(adata, form, tmp_path)
    cells = jm.read_cells(source, **KEYS)
    np.testing.assert_array_equal(cells.X.toarray(), adata.X.toarray())
    assert cells.values == "counts"
    assert cells.genes == tuple(adata.var_names)
    assert cells.label_names == TYPES
    assert [cells.label_names[i] for i in cells.labels] == adata.obs["cell_type"].tolist()
    assert [cells.study_names[i] for i in cells.studies] == adata.obs["study"].tolist()
    if isinstance(source, anndata.AnnData) and source.isbacked:
        source.file.close()


def test_the_matrix_is_the_counts_layer_then_x_unless_told(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    adata.layers["twice"] = adata.layers["counts"] * 2
    values = {
        layer: jm.read_cells(adata, layer=layer).values
        for layer in (None, "counts", "X", "raw", "twice")
    }
    assert values == {
        None: "counts", "counts": "counts", "X": "lognorm", "raw": "counts", "twice": "counts"
    }  # fmt: skip
    assert jm.read_cells(adata, layer="twice").X.sum() == 2 * adata.layers["counts"].sum()


def test_genes_come_in_the_order_asked_for_missing_ones_zero_and_reported(adata):
    genes = ["gene_7", "absent", *[f"gene_{i}" for i in range(20, 2, -1) if i != 7]]
    cells = jm.read_cells(adata, genes=genes)
    assert cells.genes == tuple(genes)
    assert cells.missing_genes == ("absent",)
    assert "1 of them missing" in cells.describe()
    X = adata.to_df()
    X["absent"] = 0
    np.testing.assert_array_equal(cells.X.toarray(), X[genes].to_numpy())


def test_alignment_and_normalisation_are_the_references_in_the_right_order():
    record = recorded("align_lognorm.npz")
    adata = anndata.AnnData(record["counts"])
    adata.var_names = record["genes"]
    cells = jm.read_cells(adata, genes=record["target"].tolist())
    order = np.argsort(np.argsort(record["target"]))  # the recording's columns are in sorted order
    np.testing.assert_allclose(log_normalized(cells).toarray(), record["X"][:, order], rtol=2e-6)


def test_several_sources_share_genes_and_number_labels_together(tmp_path):
    one, two = make_adata(30, seed=1), make_adata(20, num_genes=45, types=TYPES[2:], seed=2)
    two = two[:, ::-1].copy()
    two.write_h5ad(tmp_path / "two.h5ad")
    cells = jm.read_cells([one, tmp_path / "two.h5ad"], label_key="cell_type")
    assert cells.genes == tuple(one.var_names)
    assert set(cells.study_names) == {"AnnData 1", str(tmp_path / "two.h5ad")}
    np.testing.assert_array_equal(cells.X[30:].toarray(), two[:, one.var_names].X.toarray())
    assert [cells.label_names[i] for i in cells.labels[30:]] == two.obs["cell_type"].tolist()


def test_labels_by_name_or_id_are_one_term_and_missing_ones_no_label(adata):
    label = adata.obs["cell_type"].astype(object)
    label[:8] = ["CL:0000236", "unknown", "", None, float("nan"), "T cell", "cl:0000084", "B Cell"]
    adata.obs["cell_type"] = label
    cells = jm.read_cells(adata, **KEYS)
    named = [cells.label_names[i] if i >= 0 else None for i in cells.labels[:8]]
    assert named == ["B cell", None, None, None, None, "T cell", "T cell", "B cell"]


def test_plain_class_labels_need_no_ontology(adata):
    adata.obs["cluster"] = [f"cluster {i % 3}" for i in range(len(adata))]
    cells = jm.read_cells(adata, label_key="cluster", ontology=None)
    assert cells.label_names == ("cluster 0", "cluster 1", "cluster 2")
    with pytest.raises(ValueError, match="ontology=None") as raised:
        jm.read_cells(adata, label_key="cluster")
    assert all(f"cluster {i}" in str(raised.value) for i in range(3))


def test_selection_and_renumbering_keep_each_cells_label(adata):
    cells = jm.read_cells(adata, **KEYS)
    part = cells.select(cells.in_studies(["study_1"])).with_only(["T cell", "monocyte"])
    renumbered = part.with_labels(["monocyte", "T cell", "other"])
    assert {renumbered.label_names[i] for i in renumbered.labels} == {"T cell", "monocyte"}
    for before, after in zip(part.labels, renumbered.labels, strict=True):
        assert part.label_names[before] == renumbered.label_names[after]
    obs = adata.obs
    wanted = (obs["study"] == "study_1") & obs["cell_type"].isin(["T cell", "monocyte"])
    np.testing.assert_array_equal(part.X.toarray(), adata[wanted].X.toarray())


def damaged(adata, value):
    adata = adata.copy()
    adata.X = adata.X.toarray()
    adata.X[3, 5] = value
    return adata


def with_duplicate_genes(adata):
    adata.var_names = ["gene_0", *adata.var_names[:-1]]
    return adata


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda a, _: damaged(a, np.nan), {}, "1 values that are NaN or infinite"),
        (lambda a, _: damaged(a, np.inf), {}, "1 values that are NaN or infinite"),
        (lambda a, _: damaged(a, -1), {}, "1 negative values.*layer"),
        (lambda a, _: damaged(a, 0.5), {"values": "counts"}, "must hold counts.*lognorm"),
        (lambda a, _: damaged(a, 99.5), {}, "neither counts .* nor log-normalised.*--values"),
        (lambda a, _: a, {"values": "raw"}, "'counts' or 'lognorm', but is 'raw'"),
        (lambda a, _: a[:0], {}, "empty: 0 cells x 40 genes"),
        (lambda a, _: a[:, :0], {}, "empty: 120 cells x 0 genes"),
        (lambda a, _: with_duplicate_genes(a), {}, "1 gene names more than once .gene_0.*unique"),
        (lambda a, _: a, {"label_key": "type"}, r"no label column obs\['type'\].*cell_type, study"),
        (lambda a, _: a, {"study_key": "batch"}, r"no study column obs\['batch'\]"),
        (lambda a, _: a, {"layer": "spliced"}, "no layer 'spliced'; it has: none"),
        (lambda a, _: a, {"layer": "raw"}, "has no raw"),
        (lambda a, _: a, {"gene_key": "symbol"}, r"no gene column var\['symbol'\]"),
        (
            lambda a, _: a,
            {"genes": ["TP53", "gene_1", *"abcdefgh"]},
            "only 1 of the 10 genes.*--gene-key",
        ),
        (lambda a, _: [], {}, "empty list"),
        (lambda a, t: t / "none.h5ad", {}, "no such file: .*none.h5ad"),
        (lambda a, t: t / "text.h5ad", {}, "text.h5ad is not a readable AnnData file"),
        (lambda a, t: t / "short.h5ad", {}, "short.h5ad is not a readable AnnData file"),
        (
            lambda a, _: [a, make_adata(9, seed=3)[:, :2].copy()],
            {},
            "shares only 2 of its 40 genes",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_else(adata, tmp_path, source, options, message):
    (tmp_path / "text.h5ad").write_text("cells")
    adata.write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "short.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        jm.read_cells(source(adata, tmp_path), **options)


def test_counts_and_log_values_do_not_mix(adata):
    logged = adata.copy()
    logged.X = sp.csr_matrix(np.log1p(logged.X.toarray()))
    with pytest.raises(ValueError, match=r"mix counts and log-normalised.*AnnData 2: lognorm"):
        jm.read_cells([adata, logged])


def test_a_counts_layer_that_holds_no_counts_is_refused(adata):
    adata.layers["counts"] = np.log1p(adata.X.toarray())
    with pytest.raises(ValueError, match=r"layer 'counts' must hold counts.*--layer"):
        jm.read_cells(adata)
    assert jm.read_cells(adata, values="lognorm").values == "lognorm"


def test_a_study_that_is_not_there_is_named(adata):
    with pytest.raises(ValueError, match=r"no cell is of study 'study_9'; .* study_0, study_1"):
        jm.read_cells(adata, **KEYS).in_studies(["study_9"])


@pytest.mark.parametrize(("number", "level"), [(2, "INFO"), (20, "WARNING")])
def test_many_missing_genes_are_warned_about(number, level, adata, caplog):
    caplog.set_level(logging.INFO, "jaxmetric")
    genes = list(adata.var_names)
    jm.read_cells(adata[:, number:].copy(), genes=genes, min_gene_overlap=0.5, **KEYS)
    said = [r for r in caplog.records if f"lacks {number} of the {len(genes)} genes" in r.message]
    assert [record.levelname for record in said] == [level]


@pytest.mark.parametrize(("total", "warned"), [(1e4, False), (1e6, True)])
def test_another_scale_of_log_values_is_warned_about(total, warned, adata, caplog):
    counts = adata.X.toarray()
    adata.X = np.log1p(total * counts / counts.sum(1, keepdims=True))
    jm.read_cells(adata, **KEYS)
    assert ("normalised to 1000000 counts per cell" in caplog.text) == warned
    adata = adata[:, ::3].copy()  # of some of the genes, totals say nothing
    caplog.clear()
    jm.read_cells(adata, **KEYS)
    assert caplog.text == ""


def test_cells_are_shown_in_a_line(adata):
    shown = repr(jm.read_cells(adata, **KEYS))
    assert shown.startswith(f"Cells({adata.n_obs} cells")
    assert len(shown) < 200


def test_cells_read_before_are_warned_about_once(adata, caplog):
    half = jm.read_cells(adata[:, 20:].copy(), **KEYS)
    aligned = jm.read_cells(half, genes=list(adata.var_names), min_gene_overlap=0.5)
    assert "lacks 20 of the 40 genes expected" in caplog.text
    caplog.clear()
    jm.read_cells(aligned, genes=list(adata.var_names), min_gene_overlap=0.5)
    assert caplog.text == ""


def test_values_that_are_called_log_normalised_are_taken_as_such(adata):
    adata.X = adata.X * 1000.5
    assert jm.read_cells(adata, **KEYS, values="lognorm").values == "lognorm"


def test_cells_below_a_label_are_found_by_the_ontology(adata):
    cells = jm.read_cells(adata, **KEYS)
    names = np.array(cells.label_names)[cells.labels]
    below = cells.of_labels(["lymphocyte"], or_below=True)
    np.testing.assert_array_equal(below, names != "monocyte")
    np.testing.assert_array_equal(cells.of_labels(["B cell"], or_below=True), names == "B cell")
    assert not cells.of_labels(["lymphocyte"]).any()
