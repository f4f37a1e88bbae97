"""What a store will be, once all its files are known."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxmetric.cells.genes import kind_of_names, of_one_kind, one_order
from jaxmetric.config import Values
from jaxmetric.preparation.scan import Scan


class Plan(NamedTuple):
    """What the store will be, once all files are known.

    Attributes:
      scans: of each file that is used, in order.
      files: the name of each file, by its path.
      columns: for each file, the store's column of each of its genes, -1: none.
      genes: the store's genes.
      terms: for each label as spelled in a file, its name in the store; None: no term.
      labels: the store's labels.
      studies: the store's studies.
      samples: the store's samples.
      values: what it holds.
      num_values: values of each file's cells in the store.
      ontology: version of the ontology; None: plain class labels.
    """

    scans: dict[str, Scan]
    files: dict[str, str]
    columns: dict[str, np.ndarray]
    genes: tuple[str, ...]
    terms: dict[str, str | None]
    labels: list[str]
    studies: list[str]
    samples: list[str]
    values: Values
    num_values: dict[str, int]
    ontology: str | None


def plan_of(scans, study_names, genes, min_gene_overlap, ontology) -> Plan:
    """The plan of the scanned files.

    Raises:
      ValueError: when they do not go together, or no cell is kept.
    """
    kinds = {name: scan.values for name, scan in scans.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"the files mix counts and log-normalised values, and nothing was written "
            f"({', '.join(f'{name}: {kind}' for name, kind in kinds.items())}): choose matrices of one "
            "kind with layer= / --layer, or say what they hold with values= / --values."
        )
    kind = None if isinstance(genes, str) else kind_of_names(genes)
    names = of_one_kind({name: scan.names for name, scan in scans.items()}, kind)
    order = one_order(names, genes, min_gene_overlap)
    columns = {name: pd.Index(order).get_indexer(pd.Index(own)) for name, own in names.items()}
    spelled = sorted({label for scan in scans.values() for label in scan.labels})
    terms: dict[str, str | None] = dict(zip(spelled, spelled, strict=True))
    if ontology is not None:
        found = zip(spelled, ontology.find(spelled), strict=True)
        terms = {label: None if id_ is None else ontology.name(id_) for label, id_ in found}
    if not any(scan.kept for scan in scans.values()):
        raise ValueError("no cell is kept: loosen the filters.")
    return Plan(
        scans=scans,
        files={name: study_names[name] for name in scans},
        columns=columns,
        genes=order,
        terms=terms,
        labels=sorted({name for name in terms.values() if name is not None}),
        studies=sorted({study for scan in scans.values() for study in scan.studies}),
        samples=sorted({sample for scan in scans.values() for sample in scan.samples}),
        values=next(iter(kinds.values())),
        num_values={
            name: int(np.asarray(scan.of_gene)[columns[name] >= 0].sum())
            for name, scan in scans.items()
        },
        ontology=ontology and ontology.version,
    )
