"""Annotation: scikit-learn's labels, a threshold by definition, files whole or not at all."""

import logging

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import sklearn.neighbors
from conftest import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import TYPES, make_adata, write
from small_fit import CONFIG, KEYS

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.metric import neighbors
from jaxmetric.model import annotate as module
from jaxmetric.model.annotate import Reference, annotate, distance_threshold
from jaxmetric.model.annotate_file import annotate_file

COLUMNS = [
    f"jaxmetric_{name}"
    for name in (
        *("label", "confidence", "label_coarse", "confidence_coarse"),
        *("distance", "out_of_distribution"),
    )
]


def cells_of(studies, types):
    """Cells of some of five studies and some of the types."""
    adata = make_adata(400, num_studies=5)
    studies = [f"study_{i}" for i in studies]
    return adata[adata.obs["study"].isin(studies) & adata.obs["cell_type"].isin(types)].copy()


@pytest.fixture(scope="module")
def reference():
    return jm.read_cells(cells_of(range(4), TYPES[:3]), **KEYS)


@pytest.fixture
def new():
    """A study that neither network nor reference has seen, with a type that they have not either."""
    return cells_of([4], TYPES)


@pytest.fixture(scope="module")
def model(reference):
    changes = {"latent_dim": 8, "steps_per_epoch": 30, "input_components": 0, "learning_rate": 5e-3}
    config = jm.Config(**CONFIG.to_dict() | changes)
    return jm.fit(reference, config, devices=DEVICES[:1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from((1, 4, 9)))
def test_labels_and_confidence_are_scikit_learns(seed, k):
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(50, 3)).astype(np.float32)
    query = generator.normal(size=(21, 3)).astype(np.float32)
    labels = generator.integers(0, 4, 50).astype(np.int32)
    names = ("a", "b", "c", "d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", 8)  # several blocks, the last one shorter
        found = annotate(query, Reference(z, labels, names, 0.5), k=k)
    theirs = sklearn.neighbors.KNeighborsClassifier(k, weights="distance")
    theirs.fit(z.astype(np.float64), np.array(names)[labels])
    expected = theirs.predict_proba(query.astype(np.float64)).max(1)
    assert found["jaxmetric_label"].tolist() == theirs.predict(query.astype(np.float64)).tolist()
    np.testing.assert_allclose(found["jaxmetric_confidence"], expected, atol=1e-4)
    nearest = theirs.kneighbors(query.astype(np.float64), 1)[0][:, 0]
    np.testing.assert_allclose(found["jaxmetric_distance"], nearest, atol=1e-5)
    assert found["jaxmetric_out_of_distribution"].tolist() == (nearest > 0.5).tolist()


def test_an_exact_match_has_all_votes():
    z = np.float32([[0, 0], [0, 1], [0, 1]])
    found = annotate(z[:1], Reference(z, np.int32([1, 0, 0]), ("a", "b"), 0.0), k=3)
    assert found.loc[0].tolist() == ["b", 1.0, "b", 1.0, 0.0, False]


RELATIVES = (
    "B cell",
    "CD4-positive, alpha-beta T cell",
    "CD8-positive, alpha-beta T cell",
    "T cell",
    "monocyte",
    "natural killer cell",
)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({"B cell": 9, "monocyte": 1}, ("B cell", 0.9)),
        (
            {
                "CD4-positive, alpha-beta T cell": 6,
                "CD8-positive, alpha-beta T cell": 3,
                "monocyte": 1,
            },
            ("mature alpha-beta T cell", 0.9),
        ),
        ({"CD4-positive, alpha-beta T cell": 6, "T cell": 4}, ("T cell", 1.0)),
        ({"T cell": 6, "natural killer cell": 4}, ("lymphocyte", 1.0)),
    ],
)
def test_where_relatives_share_the_votes_their_nearest_common_ancestor_is_the_coarse_label(
    votes, expected
):
    labels = np.repeat(np.arange(6, dtype=np.int32), [votes.get(name, 0) for name in RELATIVES])
    z = np.eye(10, dtype=np.float32)  # all as far from the query
    reference = Reference(z, labels, RELATIVES, 9.0, jm.CellOntology.default())
    (found,) = annotate(np.zeros((1, 10), np.float32), reference, k=10).to_dict("records")
    assert found["jaxmetric_label"] == max(votes, key=votes.get)
    assert found["jaxmetric_label_coarse"] == expected[0]
    assert found["jaxmetric_confidence_coarse"] == pytest.approx(expected[1])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_no_more_specific_term_has_as_many_votes_as_are_asked_for(seed):
    generator = np.random.default_rng(seed)
    ontology = jm.CellOntology.default()
    terms, covers = ontology.lineages(RELATIVES)
    shares = generator.dirichlet(np.full(6, 0.3), 5)
    label = shares.argmax(1)
    term, confidence = module.agreed(shares, label, covers)
    for i in range(5):
        mass = {t: shares[i][covers[j]].sum() for j, t in enumerate(terms) if covers[j, label[i]]}
        chosen = terms[term[i]]
        assert confidence[i] == pytest.approx(mass[chosen])
        assert confidence[i] >= 0.8
        below = ontology.descendants([chosen, *mass])[0, 1:]
        assert not any(mass[t] >= 0.8 for t, is_below in zip(mass, below, strict=True) if is_below)


def slow_threshold(z, labels, studies, quantile):
    """The definition, cell by cell."""
    nearest = []
    for i in range(len(z)):
        if any(labels[j] == labels[i] and studies[j] != studies[i] for j in range(len(z))):
            others = [j for j in range(len(z)) if studies[j] != studies[i]]
            nearest.append(min(np.linalg.norm(z[j] - z[i]) for j in others))
    return np.quantile(nearest, quantile)


@pytest.mark.parametrize("quantile", [0.5, 0.95, 1.0])
def test_the_threshold_is_the_definition(quantile, monkeypatch):
    monkeypatch.setattr(neighbors, "CHUNK", 700)
    generator = np.random.default_rng(0)
    z = generator.normal(size=(60, 4)).astype(np.float32)
    studies = generator.integers(0, 3, 60).astype(np.int32)
    labels = generator.integers(0, 3, 60).astype(np.int32)
    labels[studies == 2] = np.arange((studies == 2).sum()) % 2 * 3  # label 3 in study 2 only
    z[labels == 3] += 9  # far from all: they would be most of a high quantile
    expected = slow_threshold(z.astype(np.float64), labels, studies, quantile)
    assert distance_threshold(z, labels, studies, quantile) == pytest.approx(expected, rel=1e-5)


def test_a_reference_of_one_study_is_warned_about(caplog):
    z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels = np.arange(30, dtype=np.int32) % 3
    found = distance_threshold(z, labels, np.zeros(30, np.int32), 0.9)
    expected = sklearn.neighbors.NearestNeighbors(n_neighbors=1).fit(z).kneighbors()[0]
    assert found == pytest.approx(np.quantile(expected, 0.9), rel=1e-5)
    assert "too strict for a new study" in caplog.text
    caplog.clear()
    assert distance_threshold(z, labels, labels, 0.9) == found  # each label in a study of its own
    assert "no label occurs in two studies" in caplog.text


def test_cells_unlike_any_are_flagged_and_those_of_an_unseen_study_are_not(model, reference, new):
    found = model.annotate(new, reference)
    unlike = (new.obs["cell_type"] == TYPES[3]).to_numpy()
    out = found["jaxmetric_out_of_distribution"].to_numpy()
    assert unlike.sum() > 10
    assert out[unlike].mean() > 0.8
    assert out[~unlike].mean() < 0.2
    labels = found["jaxmetric_label"].astype(str)[~unlike]
    assert (labels == new.obs["cell_type"][~unlike]).mean() > 0.9
    strict = model.annotate(new, reference, quantile=0.2)["jaxmetric_out_of_distribution"]
    assert strict[~unlike].mean() > 0.5


def test_an_anndata_gets_the_columns_and_a_file_or_cells_give_the_same(
    model, reference, new, tmp_path
):
    file = write(new, tmp_path / "new.h5ad")
    found = model.annotate(new, reference, k=5)
    assert list(found) == COLUMNS
    assert found["jaxmetric_label"].cat.categories.tolist() == sorted(TYPES[:3])
    assert found["jaxmetric_confidence"].between(0, 1).all()
    pd.testing.assert_frame_equal(new.obs[COLUMNS], found)
    pd.testing.assert_frame_equal(model.annotate(file, reference, k=5), found, atol=1e-5)
    of_cells = model.annotate(jm.read_cells(file), reference, k=5)
    assert of_cells.index.tolist() == list(range(new.n_obs))
    pd.testing.assert_frame_equal(of_cells.set_axis(new.obs_names), found, atol=1e-5)


def test_an_index_of_ones_own_is_searched(model, reference, new):
    calls = []

    def search(z, z_reference, k):
        calls.append((len(z), len(z_reference), k))
        index = sklearn.neighbors.NearestNeighbors(n_neighbors=k).fit(z_reference)
        return index.kneighbors(z)[::-1]

    found = model.annotate(new, reference, neighbors=search)
    assert calls == [(new.n_obs, len(reference), 15)]
    pd.testing.assert_frame_equal(found, model.annotate(new, reference), atol=1e-3)
    with pytest.raises(ValueError, match=r"must give whole-numbered indices .* gave .*, 14\)"):
        model.annotate(new, reference, neighbors=lambda z, r, k: search(z, r, k - 1))
    wrong = (
        lambda i, d: (i.astype(float), d),
        lambda i, d: (i + len(reference) - 1, d),
        lambda i, d: (i, -d),
        lambda i, d: (i, d * np.nan),
    )
    for change in wrong:
        with pytest.raises(ValueError, match="out of range"):
            model.annotate(
                new, reference, neighbors=lambda z, r, k, change=change: change(*search(z, r, k))
            )
    backwards = model.annotate(
        new, reference, neighbors=lambda z, r, k: [part[:, ::-1] for part in search(z, r, k)]
    )
    pd.testing.assert_frame_equal(found, backwards, atol=1e-3)


def test_cells_without_label_do_not_vote(model, reference, new, caplog):
    caplog.set_level(logging.INFO, "jaxmetric")
    labels = np.where(np.arange(len(reference)) % 3 == 0, -1, reference.labels)
    some = jm.Cells(**{**vars(reference), "labels": labels.astype(np.int32)})
    found = model.annotate(new, some, all_labels=True)
    assert f"{(labels < 0).sum()} reference cells without label are left out" in caplog.text
    pd.testing.assert_frame_equal(found, model.annotate(new, some.select(labels >= 0)))


@pytest.fixture(scope="module")
def model_directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "model"
    model.save(directory)
    return str(directory)


@pytest.fixture
def command(model_directory, tmp_path, new):
    """`jaxmetric annotate`, of a file of the new cells, beside reference cells of all four types."""
    write(cells_of(range(4), TYPES), tmp_path / "reference.h5ad")
    file = write(new, tmp_path / "new.h5ad")
    keys = ["--label-key", "cell_type", "--study-key", "study"]
    return [
        "annotate",
        model_directory,
        str(file),
        "--reference",
        f"{tmp_path}/reference.h5ad",
        *keys,
    ]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_a_copy(command, model, reference, new, tmp_path, capsys):
    new.obsm["other"] = np.ones((new.n_obs, 2))
    file, out = write(new, tmp_path / "new.h5ad"), tmp_path / "out.h5ad"
    before = file.read_bytes()
    main([*command, "--out", str(out), "--k", "5", "--quantile", "0.9"])
    said = capsys.readouterr()
    assert str(out) in said.out
    assert f"{len(reference)} of 325 reference cells have a label that the model was" in said.err
    found = anndata.read_h5ad(out)
    assert list(found.obs) == ["cell_type", "study", *COLUMNS]
    expected = model.annotate(new, reference, k=5, quantile=0.9)
    pd.testing.assert_frame_equal(found.obs[COLUMNS], expected, atol=1e-5, check_dtype=False)
    assert found.obs["jaxmetric_label"].dtype == "category"
    np.testing.assert_array_equal(found.obsm["other"], 1)
    np.testing.assert_array_equal(found.X.toarray(), new.X.toarray())
    assert file.read_bytes() == before
    assert names_in(tmp_path) == ["new.h5ad", "out.h5ad", "reference.h5ad"]


def test_the_command_replaces_its_own_columns_in_the_file(command, new, tmp_path):
    new.obs["jaxmetric_label"] = "mine"
    new.obs["other"] = 7
    file = write(new, tmp_path / "new.h5ad")
    main([*command, "--in-place", "--quiet"])
    known = anndata.read_h5ad(file).obs
    assert list(known) == ["cell_type", "study", "other", *COLUMNS]
    assert (known["other"] == 7).all()
    assert known["jaxmetric_label"].cat.categories.tolist() == sorted(TYPES[:3])
    main([*command, "--in-place", "--quiet", "--all-labels"])
    every = anndata.read_h5ad(file).obs
    assert list(every) == list(known)
    assert every["jaxmetric_label"].cat.categories.tolist() == sorted(TYPES)
    unlike = known["cell_type"] == TYPES[3]
    column = "jaxmetric_out_of_distribution"
    assert known[column].dtype == every[column].dtype == bool
    assert known[column][unlike].mean() > every[column][unlike].mean() + 0.5
    assert names_in(tmp_path) == ["new.h5ad", "reference.h5ad"]


def test_of_a_zarr_folder_obs_alone_is_written(model, reference, new, tmp_path):
    jm.prepare(write(new, tmp_path / "new.h5ad"), tmp_path / "store", **KEYS, progress=False)
    out = annotate_file(model, tmp_path / "store", reference, tmp_path / "out.h5ad", progress=False)
    found = anndata.read_h5ad(out)
    assert found.X is None
    expected = model.annotate(tmp_path / "store", reference)
    pd.testing.assert_frame_equal(found.obs[COLUMNS], expected, atol=1e-5, check_dtype=False)
    for target in (None, tmp_path / "out.zarr"):
        with pytest.raises(ValueError, match="annotations are written to h5ad files only"):
            annotate_file(model, tmp_path / "store", reference, target, progress=False)


def test_a_file_whose_annotation_fails_is_left_as_it_was(
    model, reference, new, tmp_path, monkeypatch
):
    file = write(new, tmp_path / "new.h5ad")
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("jaxmetric.model.annotate_file.write_elem", None)
        with pytest.raises(TypeError):
            annotate_file(model, file, reference, progress=False)
    assert file.read_bytes() == before
    annotate_file(model, file, reference, progress=False)
    assert COLUMNS[0] in anndata.read_h5ad(file).obs


@pytest.mark.filterwarnings("ignore:.*was written with a very old version")
def test_obs_of_long_ago_is_a_clear_error(model, reference, new, tmp_path):
    new.X = new.X.toarray()
    file = write(new, tmp_path / "new.h5ad")
    with h5py.File(file, "r+") as group:
        del group["obs"]
        group["obs"] = np.array([(name.encode(),) for name in new.obs_names], [("index", "S9")])
    with pytest.raises(ValueError, match="written by an anndata of long ago"):
        annotate_file(model, file, reference, progress=False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 400}, "at least 400 reference cells with a label are needed for k=400, but 2.. of"),
        ({"k": 0}, "k must be positive"),
        ({"quantile": 1.5}, r"quantile in \(0, 1\], but are 15 and 1.5"),
        (
            {"reference": "unlabelled"},
            "none of the .* reference cells has a label that .*: name their",
        ),
        ({"reference": "reference.h5ad"}, "reference must come from jaxmetric.read_cells"),
        ({"source": "few genes"}, "only 3 of the 40 genes"),
    ],
)
def test_bad_input_is_refused(how, message, model, reference, new):
    unlabelled = jm.read_cells(cells_of([0], TYPES))
    special = {"unlabelled": unlabelled, "few genes": new[:, :3].copy()}
    how = {"source": new, "reference": reference} | {
        name: special.get(value, value) for name, value in how.items()
    }
    with pytest.raises(ValueError, match=message):
        model.annotate(**how)
    assert COLUMNS[0] not in new.obs


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say where the annotations go"),
        (["--in-place", "--k", "999"], "at least 999 reference cells"),
        (["--out", "new.zarr"], "h5ad files only"),
    ],
)
def test_bad_use_is_one_line(flags, message, command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, *flags, "--quiet"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
