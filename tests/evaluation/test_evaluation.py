"""The report, in Python and from the shell, and its page."""

import base64
import dataclasses
import html.parser
import io
import json
import sys

import anndata
import numpy as np
import pytest
from conftest import DEVICES
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.evaluation.embeddings import seen_genes
from jaxmetric.evaluation.page import _percent, _picture
from jaxmetric.evaluation.plots import map_figure, require_pictures
from jaxmetric.evaluation.report import TABLE, cell_means, plain, score_table
from jaxmetric.scores import separation
from jaxmetric.scores.label_transfer import transfer_scores

CONFIG = jm.Config(
    hidden_dim=(16,), latent_dim=4, batch_size=32, max_epochs=2, steps_per_epoch=4, margin=0.3
)
KEYS = {"label_key": "cell_type", "study_key": "study"}
FLAGS = ["--label-key", "cell_type", "--study-key", "study", "--studies", "study_1"]


@pytest.fixture(scope="module")
def adata():
    adata = make_adata(200)
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(200, 6))
    return adata


@pytest.fixture(scope="module")
def cells(adata):
    cells = jm.read_cells(adata, **KEYS)
    query = cells.in_studies(["study_1"])
    return cells.select(query), cells.select(~query)


@pytest.fixture(scope="module")
def model(cells):
    return jm.fit(cells[1], CONFIG, devices=DEVICES[:1])


@pytest.fixture(scope="module")
def report(model, cells):
    given = [np.random.default_rng(0).normal(size=(len(one), 3)) for one in cells]
    return model.evaluate(*cells, k=5, embeddings={"given": given})


def test_the_report_is_json_with_the_same_scores_for_every_embedding(report, model, cells):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["beside"]) == ["SVD-50", "LDA-50", "logistic regression", "given"]
    own = {"num_cells", "num_scored", "num_reference", "k", "beside", "mse", "nmse"}
    for other in report["beside"].values():
        assert set(report) - set(other) == own
        assert set(other["intervals"]) == set(report["intervals"]) - {
            "mse",
            "nmse",
            *other["notes"],
        }
    for one in (report, *report["beside"].values()):
        for name, (low, high) in one["intervals"].items():
            assert low <= one[name] <= high
        assert one["macro_f1_present"] >= one["macro_f1"]
        counts = np.array(one["confusion"]["counts"])
        assert counts.sum() == report["num_scored"]
        assert np.trace(counts) / counts.sum() == pytest.approx(one["accuracy"])
        assert sum(row["num_cells"] for row in one["per_type"]) == len(cells[0])
    z = [model.embed(one) for one in cells]
    expected = transfer_scores(z[0], cells[0], z[1], cells[1], k=5)
    assert {name: report[name] for name in expected} == expected
    expected = jm.retrieval_scores(z[0], cells[0].labels, z[1], cells[1].labels)
    assert report["map_at_r"] == pytest.approx(expected["map_at_r"])


def test_what_cannot_be_scored_is_none_and_said(report):
    assert report["hidden_gene_agreement"] is not None
    given = report["beside"]["given"]
    assert given["hidden_gene_agreement"] is None
    assert given["notes"]["hidden_gene_agreement"] == "no genes can be hidden from it"
    table = score_table(report)
    assert "hidden_gene_agreement of given: no genes can be hidden from it" in table
    logistic = report["beside"]["logistic regression"]
    lacking = [name for name in logistic["notes"] if name in TABLE]
    assert all(logistic[name] is None for name in logistic["notes"])
    said = f"{', '.join(lacking)} of logistic regression: labels without an embedding"
    assert said in table.replace("\n", " ")
    assert all(row["silhouette"] is None for row in logistic["per_type"])
    assert plain({"a": np.float32("nan"), "b": [np.int64(3), np.inf]}) == {
        "a": None,
        "b": [3, None],
    }


def test_without_scib_metrics_the_report_says_so(model, cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    report = model.evaluate(*cells, baselines=False)
    assert report["study_mixing"] is None
    assert report["beside"] == model.evaluate(*cells, svd=False)["beside"] == {}
    assert "study_mixing of jaxmetric: needs the extra eval" in score_table(report)


def test_the_table_has_a_column_for_each_embedding(report):
    head, *lines = score_table(report).splitlines()
    assert head.split("  ")[-1] == "given"
    assert head.split() == ["jaxmetric", "SVD-50", "LDA-50", "logistic", "regression", "given"]
    (accuracy,) = (line.split() for line in lines if line.startswith("accuracy"))
    assert float(accuracy[1]) == pytest.approx(report["accuracy"], abs=5e-4)
    assert len(accuracy) == 1 + 5 * 3
    (silhouette,) = (line.split() for line in lines if line.startswith("silhouette"))
    assert silhouette[10] == "-"  # of labels alone
    four = {**report, "beside": {n: o for n, o in report["beside"].items() if n != "given"}}
    assert max(map(len, score_table(four).splitlines())) <= 112
    wide = {**report, "beside": {"an embedding with a long name": report["beside"]["given"]}}
    head, line, *_ = score_table(wide).splitlines()
    assert len(head) == len(line)


def test_shares_and_ratios_that_round_to_nothing_are_not_0():
    assert _percent(0.0049) == "&lt;1%"
    assert _percent(0.5) == "50%"
    none = cell_means({"mse": np.zeros(3), "power": np.zeros(3)}, np.ones(3))
    assert np.isnan(none["nmse"])


def test_a_model_is_shown_in_a_line(model):
    assert repr(model) == "MetricLearning(40 genes -> 4 dimensions, 4 labels)"


def test_hidden_genes_are_not_seen(model, cells):
    query, reference = cells
    changed = query.X.tolil()
    hidden = [i for i, gene in enumerate(model.genes) if gene not in seen_genes(model.genes)]
    assert len(hidden) == 8
    changed[:, hidden] = 7
    other = jm.read_cells(
        anndata.AnnData(changed.tocsr(), var={"names": list(model.genes)}), gene_key="names"
    )
    one, two = (model._embedding(q, reference, False) for q in (query, other))
    np.testing.assert_array_equal(one.hidden, two.hidden)
    assert np.abs(one.query - two.query).max() > 1e-3


def test_without_reference_there_is_silhouette_and_reconstruction(model, cells):
    scores = model.evaluate(cells[0])
    assert set(scores) == {"num_cells", "silhouette", "mse", "nmse"}
    assert score_table(scores).splitlines()[0].split() == ["jaxmetric"]
    with pytest.raises(ValueError, match="need reference cells"):
        model.evaluate(cells[0], page="page.html")


def test_embeddings_that_do_not_fit_are_refused(model, cells):
    good = [np.ones((len(one), 2)) for one in cells]
    for embeddings, message in (
        ({"SVD-50": good}, "cannot be named 'SVD-50'"),
        ({"logistic regression": good}, "cannot be named 'logistic regression'"),
        ({"x": good[0]}, "embedding 'x' must be two arrays"),
        ({"x": good[::-1]}, r"embedding 'x' must be one array of \(\d+, d\)"),
        ({"x": (good[0], good[1][:, :1])}, "embedding 'x' must be"),
        ({"x": (good[0] * np.nan, good[1])}, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.evaluate(*cells, embeddings=embeddings)
    with pytest.raises(ValueError, match="no such folder"):
        model.evaluate(*cells, page="absent/page.html")


def test_a_page_without_umap_is_refused_first(model, cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"needs umap-learn: pip install 'jaxmetric\[eval\]'"):
        model.evaluate(*cells, page="page.html")


def test_distances_to_own_and_unrelated_types_are_the_definition(monkeypatch):
    monkeypatch.setattr(separation, "CHUNK", 100)  # several chunks, the last one shorter
    generator = np.random.default_rng(0)
    z, y = generator.normal(size=(17, 3)).astype("f4"), generator.normal(size=(30, 3)).astype("f4")
    labels, known = generator.integers(0, 4, 17), generator.integers(0, 3, 30)
    below = np.zeros((4, 4), bool)
    below[0, 1] = True
    near, far = separation.nearest_own_and_unrelated(z, labels, y, known, below)
    for i, label in enumerate(labels):
        D = np.sqrt(((z[i] - y) ** 2).sum(1))
        unrelated = (known != label) & ~below[label, known] & ~below[known, label]
        for found, mask in ((near, known == label), (far, unrelated)):
            assert found[i] == pytest.approx(D[mask].min(initial=np.inf), rel=1e-3)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                (self.images if tag == "img" else self.links).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.filterwarnings("ignore")  # of umap and numba
def test_the_shell_writes_report_and_page_with_the_files_embeddings(
    model, cells, adata, tmp_path, capsys
):
    pytest.importorskip("umap")
    require_pictures()
    model.save(tmp_path / "model")
    parts = adata[:120].copy(), adata[120:].copy()
    names = [str(tmp_path / f"{i}.h5ad") for i in range(2)]
    for part, name in zip(parts, names, strict=True):
        part.write_h5ad(name)
    out, page = tmp_path / "scores.json", tmp_path / "page.html"
    main(["evaluate", str(tmp_path / "model"), *names, *FLAGS, "--obsm", "X_pca",
          "--out", str(out), "--page", str(page)])  # fmt: skip
    assert "X_pca" in capsys.readouterr().out
    report = json.loads(out.read_text())
    query = (adata.obs["study"] == "study_1").to_numpy()
    z = adata.obsm["X_pca"].astype(np.float32)
    expected = transfer_scores(z[query], cells[0], z[~query], cells[1])
    assert report["beside"]["X_pca"]["accuracy"] == expected["accuracy"]
    read = Page(page.read_text())
    assert read.open == []
    assert read.links == []
    assert len(read.images) == 4  # confusion, map, distances, training
    for source in read.images:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "://" not in page.read_text()  # nothing is loaded; pictures in base64 have no colon
    for text in (
        "SVD-50",
        "LDA-50",
        "logistic regression",
        "X_pca",
        "natural killer cell",
        f"{report['accuracy']:.3f}",
    ):
        assert text in page.read_text()


def test_the_reference_has_columns_of_its_own_and_labels_trained_on(model, adata, tmp_path, capsys):
    model.save(tmp_path / "model")
    query = (adata.obs["study"] == "study_1").to_numpy()
    other = adata[~query].copy()
    other.obs.loc[other.obs_names[:10], "cell_type"] = "neuron"
    other.obs = other.obs.rename(columns={"cell_type": "type", "study": "from"})
    other.var["symbol"], other.layers["umi"] = other.var_names, other.X
    other.var_names, other.X = [f"unnamed_{i}" for i in range(other.n_vars)], other.X * 0.5
    adata[query].copy().write_h5ad(tmp_path / "query.h5ad")
    other.write_h5ad(tmp_path / "reference.h5ad")
    command = ["evaluate", str(tmp_path / "model"), f"{tmp_path}/query.h5ad", *FLAGS[:4],
               "--reference", f"{tmp_path}/reference.h5ad", "--reference-label-key", "type",
               "--reference-study-key", "from", "--reference-layer", "umi",
               "--reference-gene-key", "symbol"]  # fmt: skip
    for flags, number in (([], 10), (["--all-labels"], 0)):
        main([*command, *flags, "--no-baselines", "--out", f"{tmp_path}/scores.json"])
        report = json.loads((tmp_path / "scores.json").read_text())
        assert report["beside"] == {}
        assert report["num_reference"] == (~query).sum() - number
        assert report["num_scored"] == query.sum()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--out", f"{tmp_path}/none/scores.json"])
    assert "no such folder" in capsys.readouterr().err


def test_several_stores_or_one_are_a_reference(model, adata, tmp_path, capsys):
    model.save(tmp_path / "model")
    query = adata[adata.obs["study"] == "study_1"].copy()
    query.write_h5ad(tmp_path / "query.h5ad")
    stores = []
    for study in ("study_0", "study_2"):
        adata[adata.obs["study"] == study].copy().write_h5ad(tmp_path / f"{study}.h5ad")
        stores.append(str(tmp_path / f"{study}.store"))
        jm.prepare(tmp_path / f"{study}.h5ad", stores[-1], **KEYS, progress=False)
    command = ["evaluate", str(tmp_path / "model"), f"{tmp_path}/query.h5ad", *FLAGS[:4]]
    out = tmp_path / "scores.json"
    for reference, number in ((stores, adata.n_obs - len(query)), (stores[:1], None)):
        main([*command, "--reference", *reference, "--out", str(out)])
        number = number or (adata.obs["study"] == "study_0").sum()
        assert json.loads(out.read_text())["num_reference"] == number
    for flag, value in (("layer", "raw"), ("values", "lognorm"), ("gene-key", "symbol")):
        with pytest.raises(SystemExit):
            main([*command, "--reference", stores[0], f"--reference-{flag}", value])
        assert stores[0] in capsys.readouterr().err


def test_a_model_of_coarsened_labels_knows_the_cells_it_was_trained_on():
    adata = make_adata(160)
    only = (adata.obs["cell_type"] == "T cell") & (adata.obs["study"] == "study_0")
    adata.obs.loc[only, "cell_type"] = "CD4-positive, alpha-beta T cell"
    cells = jm.read_cells(adata, **KEYS)
    config = dataclasses.replace(CONFIG, singleton_labels="coarsen", max_epochs=1)
    model = jm.fit(cells, config, devices=DEVICES[:1], progress=False)
    report = model.evaluate(cells, cells, baselines=False)
    assert (report["num_reference"], report["num_scored"]) == (160, 160)


def test_macro_f1_with_rare_types_lies_in_its_interval(model):
    """Resamples without a rare type that is never found would have better scores."""
    rare = [f"rare {i}" for i in range(20)]
    names = np.array([*["common"] * 40, *rare])
    adata = make_adata(60)
    adata.obs["cell_type"] = names
    query = jm.read_cells(adata, **KEYS, ontology=None)
    z = np.eye(21, dtype=np.float32)[[0] * 60]  # all lie at the common type
    reference = np.eye(21, dtype=np.float32)[[0] * 40 + list(range(1, 21))]
    report = model.evaluate(
        query, query, k=1, all_labels=True, baselines=False, embeddings={"given": (z, reference)}
    )
    found = report["beside"]["given"]
    for name in ("macro_f1", "balanced_accuracy", "ontology_macro_f1"):
        low, high = found["intervals"][name]
        assert low <= found[name] <= high < 0.06


def test_the_legend_of_many_groups_is_whole():
    Image = pytest.importorskip("PIL.Image")  # comes with matplotlib
    groups = dict.fromkeys("ab", ([f"study {i}" for i in range(20)], np.arange(20)))
    figure = map_figure(np.zeros((20, 2)), np.ones(20, bool), groups)
    data = _picture(figure, "").partition("base64,")[2].partition('"')[0]
    found = Image.open(io.BytesIO(base64.b64decode(data))).size
    assert found[1] > 130 * figure.get_tightbbox().height


def test_obsm_that_is_not_there_is_refused(model, adata, tmp_path, capsys):
    model.save(tmp_path / "model")
    name = str(tmp_path / "cells.h5ad")
    adata.write_h5ad(name)
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "model"), name, *FLAGS, "--obsm", "X_scVI"])
    assert "has no obsm['X_scVI']; it has: X_pca." in capsys.readouterr().err
