import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.labels.ontology import CellOntology, UnknownLabelError

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
POOL = json.loads((DATA / "ontology.json").read_text())["labels"]
RELATIONS = json.loads((DATA / "ontology.json").read_text())["relations"]
REFERENCE = dict(np.load(DATA / "ontology_matrix.npz"))
REFERENCE_PARENT = json.loads((DATA / "most_viable_parent.json").read_text())

OBO = """\
format-version: 1.2
data-version: toy/2026-01-01
ontology: toy

[Term]
id: CL:0
name: cell

[Term]
id: CL:1
name: blood cell
alt_id: CL:100
is_a: CL:0
relationship: RO:9 UBERON:1

[Term]
id: CL:2
name: nucleus
relationship: BFO:0000050 CL:1

[Term]
id: CL:3
name: stem cell
is_a: CL:0

[Term]
id: CL:4
name: progeny
is_a: CL:0
relationship: develops_from CL:3

[Term]
id: CL:5
name: obsolete corpuscle
is_obsolete: true
replaced_by: CL:1

[Term]
id: UBERON:1
name: blood
relationship: has_part CL:3

[Typedef]
id: BFO:0000050
name: part of

[Typedef]
id: RO:9
name: located in
"""


@pytest.fixture(scope="module")
def onto():
    return CellOntology.default()


@pytest.fixture(scope="module")
def obo_path():
    if "JAXMETRIC_DATA" not in os.environ:
        pytest.skip("JAXMETRIC_DATA is not set")
    pytest.importorskip("obonet")
    return Path(os.environ["JAXMETRIC_DATA"]) / "cl-simple_2026-03-26.obo"


@pytest.fixture
def toy(tmp_path):
    pytest.importorskip("obonet")
    path = tmp_path / "toy.obo"
    path.write_text(OBO)
    return path


def pairs(matrix, labels):
    return {(labels[a], labels[b]) for a, b in np.argwhere(matrix)}


# The snapshot


def test_snapshot_is_the_pinned_release(onto):
    assert onto.version == "CL 2026-03-26 (is_a, part_of)"
    assert len(onto.ids) == len(set(onto.ids)) == len(set(onto.names)) == 3324
    assert onto is CellOntology.default()


def test_every_term_descends_from_a_few_roots(onto):
    roots = [name for name, up in zip(onto.names, onto.parents_of, strict=True) if not up]
    assert "cell" in roots
    ancestors = onto.ancestors(onto.ids)
    np.testing.assert_array_equal(ancestors.any(1), [bool(up) for up in onto.parents_of])
    assert not (ancestors & ancestors.T).any()


def test_snapshot_differs_from_the_reference_by_developmental_edges_alone(onto):
    ancestors = onto.ancestors(POOL)
    assert pairs(REFERENCE["ancestors"] & ~ancestors, POOL) == {
        ("plasma cell", "B cell"),
        ("macrophage", "monocyte"),
        ("alveolar macrophage", "monocyte"),
    }
    assert not (ancestors & ~REFERENCE["ancestors"]).any()


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ("hepatocyte", "epithelial cell"),
        ("type B pancreatic cell", "epithelial cell"),
        ("alveolar macrophage", "macrophage"),
        ("regulatory T cell", "T cell"),
        ("plasma cell", "lymphocyte"),
        ("neuromuscular junction nucleus", "extrafusal muscle fiber"),  # part_of
    ],
)
def test_known_kinds(onto, child, parent):
    np.testing.assert_array_equal(onto.ancestors([child, parent]), [[False, True], [False, False]])
    np.testing.assert_array_equal(
        onto.descendants([child, parent]), [[False, False], [True, False]]
    )
    assert onto.related([child, parent]).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [("T cell", "B cell"), ("macrophage", "monocyte"), ("plasma cell", "B cell")],
)
def test_known_strangers(onto, one, other):
    np.testing.assert_array_equal(onto.related([one, other]), np.eye(2, dtype=bool))


def test_coarse_graining_agrees_with_the_reference_wherever_it_finds_a_direct_parent(onto):
    nearest = dict(zip(POOL, onto.nearest_present_parent(POOL), strict=True))
    differ = {x for x in POOL if REFERENCE_PARENT[x] not in (None, nearest[x])}
    assert differ == {"macrophage"}
    assert nearest["macrophage"] == "leukocyte"
    assert nearest["naive B cell"] == "B cell"
    assert nearest["leukocyte"] is None


# Labels


def test_labels_go_by_id_name_case_and_replaced_id(onto):
    labels = ["CL:0000084", "T cell", "t CELL", "cl:0000084", np.str_("T cell")]
    assert onto.resolve(labels) == ["CL:0000084"] * 5
    assert [onto.name(label) for label in labels] == ["T cell"] * 5
    assert onto.related(labels).all()
    assert not onto.ancestors(labels).any()
    assert onto.resolve(["CL:0000003"]) == ["CL:0000000"]
    assert onto.resolve(iter(POOL)) == [RELATIONS[label]["id"] for label in POOL]


def test_exact_spelling_comes_before_case():
    onto = CellOntology("v", ("X:1", "X:2"), ("Kit cell", "KIT cell"), ((), ()))
    assert onto.resolve(["Kit cell", "KIT cell"]) == ["X:1", "X:2"]


@pytest.mark.parametrize(
    "ask",
    [
        *("resolve", "ancestors", "descendants", "related", "parents", "lineages"),
        "nearest_present_parent",
    ],
)
def test_unknown_labels_are_listed_once_and_all(onto, ask):
    with pytest.raises(UnknownLabelError) as caught:
        getattr(onto, ask)(["T cell", "monocyt", "leiden 3", "CL:9999999", "monocyt", float("nan")])
    message = str(caught.value)
    assert re.findall(r"^  '(.*?)'", message, re.MULTILINE) == [
        "CL:9999999",
        "leiden 3",
        "monocyt",
        "nan",
    ]
    assert "'monocyt'; near: 'monocyte' (CL:0000576)" in message
    assert "'leiden 3'; near: none" in message
    assert "--ontology none" in message


def test_unknown_present_labels_are_errors_too(onto):
    with pytest.raises(UnknownLabelError, match="lymphocytee"):
        onto.nearest_present_parent(["T cell"], present=["lymphocytee"])


def test_no_labels_give_empty_matrices(onto):
    for matrix in (onto.ancestors([]), onto.descendants([]), onto.related([])):
        assert matrix.shape == (0, 0)
        assert matrix.dtype == bool
    assert onto.parents([]) == onto.nearest_present_parent([]) == []


def test_parents_are_sorted_names(onto):
    assert onto.parents(["CL:0000182", "cell", "B cell"]) == [
        ("endopolyploid cell", "epithelial cell"),
        (),
        ("lymphocyte of B lineage",),
    ]


def test_nearest_parent_is_spelled_as_present(onto):
    present = ["CL:0000542", "LYMPHOCYTE", "leukocyte"]
    assert onto.nearest_present_parent(["T cell", "lymphocyte"], present) == [
        "CL:0000542",
        "leukocyte",
    ]


def test_nearest_parent_ties_go_to_the_more_specific_then_to_the_name():
    names = ("root", "wide", "deep", "twin", "leaf")
    onto = CellOntology("v", tuple("01234"), names, ((), (0,), (1,), (1,), (1, 2, 3)))
    assert onto.nearest_present_parent(["leaf"], ["root", "wide", "twin", "deep"]) == ["deep"]
    assert onto.nearest_present_parent(["leaf"], ["root", "wide", "twin"]) == ["twin"]
    assert onto.nearest_present_parent(["leaf"], ["root"]) == ["root"]


# Any graph


@st.composite
def ontologies(draw, *, cyclic=False):
    n = draw(st.integers(1, 9))
    parents = [
        draw(st.sets(st.integers(0, n - 1 if cyclic else i - 1), max_size=3)) if cyclic or i else ()
        for i in range(n)
    ]
    ids = tuple(f"X:{i}" for i in range(n))
    return CellOntology("random", ids, ids, tuple(tuple(sorted(up)) for up in parents))


def closure(onto):
    """Floyd-Warshall: fewest edges up from each term to each other one, inf for no way."""
    n = len(onto.ids)
    steps = np.full((n, n), np.inf)
    for child, up in enumerate(onto.parents_of):
        steps[child, list(up)] = 1
    for k in range(n):
        steps = np.minimum(steps, steps[:, [k]] + steps[[k], :])
    return np.where(np.eye(n, dtype=bool), np.inf, steps)


@given(ontologies())
def test_ancestors_of_a_dag(onto):
    up = onto.ancestors(onto.ids)
    np.testing.assert_array_equal(up, np.isfinite(closure(onto)))
    np.testing.assert_array_equal(onto.descendants(onto.ids), up.T)
    assert not up.diagonal().any()
    two_steps = up @ up
    assert not (two_steps & ~up).any()


@given(ontologies(cyclic=True))
def test_cycles_end(onto):
    up = onto.ancestors(onto.ids)
    np.testing.assert_array_equal(up, np.isfinite(closure(onto)))
    related = onto.related(onto.ids)
    np.testing.assert_array_equal(related, up | up.T | np.eye(len(up), dtype=bool))


@given(ontologies(), st.data())
def test_matrices_follow_the_labels(onto, data):
    order = data.draw(st.lists(st.integers(0, len(onto.ids) - 1), max_size=12))
    labels = [onto.ids[i] for i in order]
    for ask in (onto.ancestors, onto.descendants, onto.related):
        np.testing.assert_array_equal(ask(labels), ask(onto.ids)[np.ix_(order, order)])


@given(ontologies(cyclic=True), st.data())
def test_nothing_present_is_nearer_or_as_near_and_more_specific(onto, data):
    present = data.draw(st.lists(st.sampled_from(onto.ids), unique=True))
    steps = closure(onto)
    ancestors = np.isfinite(steps)
    columns = [onto.ids.index(label) for label in present]
    for row, parent in enumerate(onto.nearest_present_parent(onto.ids, present)):
        if parent is None:
            assert not ancestors[row, columns].any()
            continue
        chosen = onto.ids.index(parent)
        assert chosen in columns
        assert steps[row, chosen] == steps[row, columns].min()
        rivals = [c for c in columns if steps[row, c] == steps[row, chosen]]
        assert ancestors[chosen].sum() == max(ancestors[c].sum() for c in rivals)


# OBO files


def test_obo_relations(toy):
    ask = ["cell", "blood cell", "nucleus", "stem cell", "progeny"]
    default = CellOntology.from_obo(toy)
    assert default.version == "toy/2026-01-01 (is_a, part_of)"
    assert default.ids == ("CL:0", "CL:1", "CL:2", "CL:3", "CL:4")
    assert default.parents(ask) == [(), ("cell",), ("blood cell",), ("cell",), ("cell",)]

    is_a = CellOntology.from_obo(toy, relations=["is_a"])
    assert is_a.parents(["nucleus"]) == [()]
    assert CellOntology.from_obo(toy, relations=["BFO:0000050"]).parents(ask) == [
        (),
        (),
        ("blood cell",),
        (),
        (),
    ]

    every = CellOntology.from_obo(toy, relations=None)
    assert every.version == "toy/2026-01-01 (all relations)"
    assert every.parents(["progeny", "blood cell"]) == [("cell", "stem cell"), ("cell",)]


def test_obo_prefix(toy):
    every = CellOntology.from_obo(toy, relations=None, prefix="")
    assert "UBERON:1" in every.ids
    assert every.ancestors(["blood cell", "stem cell"])[0, 1]
    with pytest.raises(ValueError, match="'GO:'"):
        CellOntology.from_obo(toy, prefix="GO:")


def test_obo_obsolete_terms_lead_to_their_replacement(toy):
    onto = CellOntology.from_obo(toy)
    assert onto.resolve(["CL:5", "CL:100"]) == ["CL:1", "CL:1"]
    with pytest.raises(UnknownLabelError):
        onto.resolve(["obsolete corpuscle"])


def test_obo_unknown_relation_lists_the_known(toy):
    with pytest.raises(ValueError, match=r"part_of.*found \['derives_from'\]"):
        CellOntology.from_obo(toy, relations=["is_a", "derives_from"])


def test_obo_cycle_ends(toy):
    toy.write_text(
        "format-version: 1.2\nontology: toy\n\n"
        "[Term]\nid: CL:1\nname: a\nis_a: CL:2\n\n[Term]\nid: CL:2\nname: b\nis_a: CL:1\n"
    )
    onto = CellOntology.from_obo(toy)
    np.testing.assert_array_equal(onto.ancestors(["a", "b"]), ~np.eye(2, dtype=bool))
    assert onto.related(["a", "b"]).all()
    assert onto.nearest_present_parent(["a", "b"]) == ["b", "a"]


@pytest.mark.parametrize(
    "content",
    [b"<html>\n<body>404", bytes(range(256)), b"format-version: 1.2\n\n[Term]\nname: no id\n", b""],
)
def test_obo_that_is_none(toy, content):
    toy.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(toy))):
        CellOntology.from_obo(toy)


def test_obo_missing(tmp_path):
    pytest.importorskip("obonet")
    with pytest.raises(ValueError, match="no such OBO file"):
        CellOntology.from_obo(tmp_path / "none.obo")
    with pytest.raises(ValueError, match="not an OBO file"):
        CellOntology.from_obo(tmp_path)


def test_obo_without_obonet(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "obonet", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmetric\[obo\]'"):
        CellOntology.from_obo(toy)


# Other sources of the same release


@pytest.mark.real_data
def test_all_relations_reproduce_the_reference(obo_path):
    onto = CellOntology.from_obo(obo_path, relations=None)
    for ask, expected in REFERENCE.items():
        np.testing.assert_array_equal(getattr(onto, ask)(POOL), expected)
    for label, parents in zip(POOL, onto.parents(POOL), strict=True):
        assert sorted(set(parents) & set(POOL)) == sorted(RELATIONS[label]["parents_in_pool"])
    nearest = onto.nearest_present_parent(POOL)
    assert all(REFERENCE_PARENT[x] in (None, up) for x, up in zip(POOL, nearest, strict=True))


@pytest.mark.real_data
def test_snapshot_is_what_the_obo_file_says(onto, obo_path):
    read = CellOntology.from_obo(obo_path)
    assert (read.ids, read.names, read.parents_of) == (onto.ids, onto.names, onto.parents_of)
    replaced = [[old for old in olds if old.startswith("CL:")] for olds in read.alternate_ids]
    assert replaced == [list(olds) for olds in onto.alternate_ids]


@pytest.fixture(scope="module")
def guide():
    versions = pytest.importorskip("cellxgene_ontology_guide.supported_versions")
    try:
        return versions.load_ontology_file("CL-ontology-v2026-03-26.json.zst")
    except FileNotFoundError:
        pytest.skip("this cellxgene-ontology-guide has no CL 2026-03-26")


def test_ancestors_are_those_of_the_guide(onto, guide):
    used = {id_: term for id_, term in guide.items() if not term["deprecated"]}
    assert dict(zip(onto.ids, onto.names, strict=True)) == {
        id_: term["label"] for id_, term in used.items()
    }
    ours = pairs(onto.ancestors(onto.ids), onto.ids)
    guides = {(id_, up) for id_, term in used.items() for up in term["ancestors"]}
    assert ours <= guides
    through_go_terms = {"cytoplasm", "nucleus", "heterochromatin"}  # parts of cells, no cell types
    assert len(guides - ours) == 8
    for id_, up in guides - ours:
        assert onto.name(id_).split()[-1] in through_go_terms
        assert onto.name(up) == "cell"


def test_table_is_what_its_script_makes(guide):
    script = runpy.run_path(str(ROOT / "tools/make_cell_ontology.py"))
    made = script["HEADER"].format(release="2026-03-26") + script["table"](guide)
    assert made == (ROOT / "jaxmetric/labels/cell_ontology.tsv").read_text("utf-8")


def test_lineages_are_the_labels_and_their_ancestors_most_specific_first():
    onto = CellOntology.default()
    labels = ["T cell", "B cell", "monocyte"]
    terms, covers = onto.lineages(labels)
    assert set(labels) < set(terms)
    for term, covered in zip(terms, covers, strict=True):
        below = onto.descendants([term, *labels])[0, 1:]
        assert covered.tolist() == [
            b or label == term for b, label in zip(below, labels, strict=True)
        ]
    assert covers.any(1).all()
    place = {term: i for i, term in enumerate(terms)}
    below = onto.descendants(terms)
    assert all(place[terms[j]] < place[terms[i]] for i, j in np.argwhere(below))
