"""The Cell Ontology: which cell types are kinds of which, as boolean matrices over labels."""

import difflib
import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class UnknownLabelError(ValueError):
    """Labels that are no term of the ontology; the message lists all of them, with near matches."""


class _Term(NamedTuple):
    name: str
    parents: Collection[str]
    alternate_ids: Collection[str]


@dataclass(frozen=True)
class CellOntology:
    """Terms and the edges to their direct parents; hashable, free of I/O once made.

    Every method takes labels as the caller spells them: ids ("CL:0000084"), names ("T cell") or ids
    that a term replaced, exact spelling first, then whatever the case. Rows and columns of a matrix
    follow the labels; labels may repeat, and may spell one term in several ways. A label that is
    none of these raises `UnknownLabelError`.
    """

    version: str
    """Release and relations, e.g. "CL 2026-03-26 (is_a, part_of)"."""
    ids: tuple[str, ...] = field(repr=False)
    """Id of each term, e.g. "CL:0000084"."""
    names: tuple[str, ...] = field(repr=False)
    """Name of each term, e.g. "T cell"."""
    parents_of: tuple[tuple[int, ...], ...] = field(repr=False)
    """Direct parents of each term, by index."""
    alternate_ids: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """Retired ids that each term replaces."""

    @classmethod
    @functools.cache
    def default(cls) -> "CellOntology":
        """The release that ships with the package (is_a and part_of), read once, offline."""
        table = resources.files("jaxmetric.labels").joinpath("cell_ontology.tsv").read_text("utf-8")
        version, *lines = table.splitlines()
        rows = (line.split("\t") for line in lines if not line.startswith("#"))
        terms = {
            id_: _Term(name, parents.split(), alternates.split())
            for id_, parents, alternates, name in rows
        }
        return cls._from_terms(version.removeprefix("# "), terms)

    @classmethod
    def from_obo(
        cls,
        path: str | Path,
        *,
        relations: Sequence[str] | None = ("is_a", "part_of"),
        prefix: str = "CL:",
    ) -> "CellOntology":
        """Reads an OBO file, plain or compressed (.gz), with obonet.

        Args:
          path: the file.
          relations: the relation types that count as edges to a parent, by id ("BFO:0000050") or by
            name ("part_of"; the default two may be absent); None: all, as SCimilarity reads it.
          prefix: terms with other ids, and the edges to them, are left out; "" keeps all.

        Raises:
          ImportError: obonet is not installed.
          ValueError: the file is missing, is not OBO, has no such terms or no such relation.
        """
        graph = _read_obo(Path(path))
        kinds = _edge_kinds(graph, relations)
        replaced = defaultdict(list)
        for id_, node in graph.nodes(data=True):
            for successor in node.get("replaced_by", ()):
                replaced[successor].append(id_)
        terms = {
            id_: _Term(
                name=node.get("name", id_),
                parents={
                    parent for _, parent, kind in graph.out_edges(id_, keys=True) if kind in kinds
                },
                alternate_ids={*node.get("alt_id", ()), *replaced[id_]},
            )
            for id_, node in graph.nodes(data=True)
            if id_.startswith(prefix) and "true" not in node.get("is_obsolete", ())
        }
        if not terms:
            raise ValueError(
                f"{path}: expected terms with ids that begin with {prefix!r}, found none"
            )
        release = graph.graph.get("data-version", Path(path).name)
        read = "all relations" if relations is None else ", ".join(relations)
        return cls._from_terms(f"{release} ({read})", terms)

    @classmethod
    def _from_terms(cls, version: str, terms: Mapping[str, _Term]) -> "CellOntology":
        index = {id_: i for i, id_ in enumerate(sorted(terms))}
        ordered = [terms[id_] for id_ in index]
        return cls(
            version=version,
            ids=tuple(index),
            names=tuple(term.name for term in ordered),
            parents_of=tuple(
                tuple(sorted(index[p] for p in term.parents if p in index)) for term in ordered
            ),
            alternate_ids=tuple(tuple(sorted(term.alternate_ids)) for term in ordered),
        )

    def resolve(self, labels: Iterable[str]) -> list[str]:
        """The id of each label."""
        return [self.ids[term] for term in self._terms(labels)]

    def find(self, labels: Iterable[str]) -> list[str | None]:
        """The id of each label, None for those that are no terms."""
        return [self.ids[term] if term >= 0 else None for term in map(self._find, labels)]

    def name(self, label: str) -> str:
        """The name of the term that a label (name or id) means."""
        return self.names[self._terms([label])[0]]

    def ancestors(self, labels: Iterable[str]) -> NDArray[np.bool_]:
        """Bool (k, k), [a, b]: b is a proper ancestor of a, through any number of edges."""
        terms = self._terms(labels)
        above = {term: self._steps_up(term) for term in set(terms)}
        rows = [[b in above[a] for b in terms] for a in terms]
        return np.array(rows, dtype=bool).reshape(len(terms), len(terms))

    def descendants(self, labels: Iterable[str]) -> NDArray[np.bool_]:
        """Bool (k, k), [a, b]: b is a proper descendant of a."""
        return self.ancestors(labels).T

    def related(self, labels: Iterable[str]) -> NDArray[np.bool_]:
        """Bool (k, k), symmetric: b is the term a, an ancestor or a descendant of it."""
        labels = list(labels)
        terms = np.array(self._terms(labels), dtype=int)
        up = self.ancestors(labels)
        return (terms[:, None] == terms) | up | up.T

    def parents(self, labels: Iterable[str]) -> list[tuple[str, ...]]:
        """Sorted names of the direct parents of each label in the whole ontology; () for a root."""
        return [
            tuple(sorted(self.names[parent] for parent in self.parents_of[term]))
            for term in self._terms(labels)
        ]

    def lineages(self, labels: Iterable[str]) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
        """Every term that is one of the labels or an ancestor of one, by name.

        Returns:
          The terms, most specific first: those with few of the labels below them, and of these those with
          many ancestors (of terms of one name, each with its id); and covers[i, j]: label j is term i or
          a descendant of it.

        Raises:
          UnknownLabelError: for labels that are no terms.
        """
        terms = self._terms(labels)
        lineage = {term: {term, *self._steps_up(term)} for term in set(terms)}
        above = sorted(set().union(*lineage.values()), key=lambda term: self.names[term])
        covers = np.array([[t in lineage[term] for term in terms] for t in above], bool)
        covers = covers.reshape(len(above), len(terms))
        order = np.lexsort(([-len(self._steps_up(term)) for term in above], covers.sum(1)))
        names = [self.names[above[i]] for i in order]
        ids = [self.ids[above[i]] for i in order]
        unique = (
            n if names.count(n) == 1 else f"{n} ({i})" for n, i in zip(names, ids, strict=True)
        )
        return tuple(unique), covers[order]

    def nearest_present_parent(
        self, labels: Iterable[str], present: Iterable[str] | None = None
    ) -> list[str | None]:
        """The nearest proper ancestor of each label among the labels that are present.

        Nearest: the fewest edges up; of several, the most specific, which has the most ancestors
        itself; then the first by name.

        Args:
          labels: k labels.
          present: the labels to choose from; None: `labels`.

        Returns:
          k labels, as spelled in `present` (its first spelling of the term); None: no ancestor.
        """
        labels = list(labels)
        present = labels if present is None else list(present)
        terms = self._terms(labels + present)
        here = dict(zip(reversed(terms[len(labels) :]), reversed(present), strict=True))
        ancestors = {term: len(self._steps_up(term)) for term in here}

        def nearest(term: int) -> str | None:
            steps = self._steps_up(term)
            order = sorted((steps[p], -ancestors[p], self.names[p], p) for p in steps if p in here)
            return here[order[0][-1]] if order else None

        return [nearest(term) for term in terms[: len(labels)]]

    def _steps_up(self, term: int) -> dict[int, int]:
        """Fewest edges from a term to each of its proper ancestors; ends on cycles too."""
        steps: dict[int, int] = {}
        level = {term}
        distance = 0
        while level := {p for t in level for p in self.parents_of[t]} - steps.keys() - {term}:
            distance += 1
            steps.update(dict.fromkeys(level, distance))
        return steps

    def _terms(self, labels: Iterable[str]) -> list[int]:
        labels = [str(label) for label in labels]
        terms = [self._find(x) for x in labels]
        if -1 in terms:
            unknown = {x for x, term in zip(labels, terms, strict=True) if term == -1}
            raise UnknownLabelError(
                f"labels that are no terms of {self.version}:\n"
                + "".join(f"  {x!r}; near: {self._near(x)}\n" for x in sorted(unknown))
                + "Rename them to names or ids of the ontology, or train on plain class labels: "
                "ontology=None, on the command line --ontology none."
            )
        return terms

    def _find(self, label: str) -> int:
        return self._exact.get(label, self._folded.get(label.casefold(), -1))

    def _near(self, label: str) -> str:
        spellings = difflib.get_close_matches(label.casefold(), self._folded, n=3)
        terms = dict.fromkeys(self._folded[spelling] for spelling in spellings)
        return ", ".join(f"{self.names[t]!r} ({self.ids[t]})" for t in terms) or "none"

    @functools.cached_property
    def _exact(self) -> dict[str, int]:
        replaced = {old: i for i, olds in enumerate(self.alternate_ids) for old in olds}
        names = {name: i for i, name in enumerate(self.names)}
        return replaced | names | {id_: i for i, id_ in enumerate(self.ids)}

    @functools.cached_property
    def _folded(self) -> dict[str, int]:
        return {spelling.casefold(): term for spelling, term in self._exact.items()}


def _read_obo(path: Path) -> Any:
    try:
        import obonet
    except ImportError as error:
        raise ImportError("reading OBO files needs obonet: pip install 'jaxmetric[obo]'") from error
    try:
        return obonet.read_obo(path, ignore_obsolete=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such OBO file") from error
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not an OBO file that obonet can read ({error})") from error


def _edge_kinds(graph: Any, relations: Sequence[str] | None) -> set[str]:
    """The kinds of edge that the relations name: a kind goes by its id and by its name."""
    name = {
        kind["id"]: kind.get("name", kind["id"]).replace(" ", "_")
        for kind in graph.graph["typedefs"]
    }
    for *_, kind in graph.edges(keys=True):
        name.setdefault(kind, kind)
    if relations is None:
        return set(name)
    known = {"is_a", "part_of", *name, *name.values()}
    if unknown := sorted(set(relations) - known):
        raise ValueError(f"relations: expected some of {sorted(known)}, found {unknown}")
    return {kind for kind in name if not {kind, name[kind]}.isdisjoint(relations)}
