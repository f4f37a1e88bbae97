"""What became of each cell of each file that a store was made of."""

from jaxmetric.preparation.plan import Plan


def report_of(plan: Plan, bad: dict[str, str]) -> dict:
    """The report of a store, and of the files that were left out."""
    unmapped = {label for label, name in plan.terms.items() if name is None}
    files = []
    for name, found in plan.scans.items():
        files.append(
            {
                "file": name,
                "cells": found.cells,
                "kept": found.kept,
                "dropped": found.dropped,
                "genes": len(found.of_gene),
                "genes in the store": int((plan.columns[name] >= 0).sum()),
                "cells without label": found.unlabelled,
                "labels that are no terms": {
                    k: n for k, n in found.labels.items() if k in unmapped
                },
            }
        )
    return {
        "cells": sum(scan.cells for scan in plan.scans.values()),
        "kept": sum(scan.kept for scan in plan.scans.values()),
        "genes": len(plan.genes),
        "labels": len(plan.labels),
        "studies": len(plan.studies),
        "values": plan.values,
        "ontology": plan.ontology,
        "files": files,
        "left out": bad,
    }


def report_table(report: dict) -> str:
    """The report as text."""
    lines = [f"{'cells':>10} {'kept':>10}  file"]
    for one in report["files"]:
        lines.append(f"{one['cells']:10} {one['kept']:10}  {one['file']}")
        told = dict(one["dropped"])
        if one["cells without label"]:
            told["without label, kept"] = one["cells without label"]
        for label, count in one["labels that are no terms"].items():
            told[f"label is no term, kept without: {label}"] = count
        lines += [f"{'':10} {count:10}    {reason}" for reason, count in told.items()]
    lines += [f"left out: {why}" for why in report["left out"].values()]
    lines.append(
        f"{report['kept']} of {report['cells']} cells, {report['genes']} genes, {report['labels']} "
        f"labels, {report['studies']} studies, {report['values']}"
    )
    return "\n".join(lines)
