"""Writes the Cell Ontology table that ships with jaxmetric, from cellxgene-ontology-guide.

    pip install cellxgene-ontology-guide==1.11.1
    python tools/make_cell_ontology.py 2026-03-26 jaxmetric/labels/cell_ontology.tsv

The guide holds each release's terms with all their is_a and part_of ancestors and the number of
edges to each; the parents are the ancestors one edge away.
"""

import argparse
from pathlib import Path

from cellxgene_ontology_guide.supported_versions import (  # pyright: ignore[reportMissingImports]
    load_ontology_file,
)

HEADER = """\
# CL {release} (is_a, part_of)
# The Cell Ontology, release {release}, https://obofoundry.org/ontology/cl
# Licence: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
# Changes: kept are the terms in use, with their direct parents and the retired ids they replace.
# Made by tools/make_cell_ontology.py. Columns: id, parents, replaced ids, name.
"""


def table(terms: dict[str, dict]) -> str:
    """One line per term in use: id, parents, replaced ids, name."""
    used = {id_: term for id_, term in sorted(terms.items()) if not term["deprecated"]}
    parents = {
        id_: sorted(up for up, steps in term["ancestors"].items() if steps == 1)
        for id_, term in used.items()
    }
    replaced: dict[str, list[str]] = {id_: [] for id_ in used}
    for id_, term in sorted(terms.items()):
        replaced.get(term.get("replaced_by", ""), []).append(id_)
    return "".join(
        f"{id_}\t{' '.join(parents[id_])}\t{' '.join(replaced[id_])}\t{term['label']}\n"
        for id_, term in used.items()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Writes the Cell Ontology table that ships with jaxmetric"
    )
    parser.add_argument("release", help="release of the Cell Ontology, as in the guide")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    terms = load_ontology_file(f"CL-ontology-v{args.release}.json.zst")
    args.output.write_text(HEADER.format(release=args.release) + table(terms), encoding="utf-8")
