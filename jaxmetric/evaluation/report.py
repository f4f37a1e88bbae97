"""The evaluation report: how good an embedding of query cells is, beside others of the same cells."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Num, Shaped

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.evaluation.embeddings import MODEL, Embedding
from jaxmetric.labels.label_set import depth_first_order
from jaxmetric.metric import silhouette
from jaxmetric.metric.neighbors import nearest_neighbors
from jaxmetric.metric.retrieval import retrieval_per_cell
from jaxmetric.scores.agreement import (
    hidden_gene_agreement,
    hidden_genes,
    mean_of_neighbors,
    most_variable,
    neighborhood_agreement,
    ranked_pairs,
)
from jaxmetric.scores.bootstrap import intervals, weighted_means
from jaxmetric.scores.label_transfer import (
    Labelled,
    confusion,
    confusion_scores,
    counts,
    number_alike,
    per_type,
    predict,
)
from jaxmetric.scores.mixing import lisi, scaled_median

TABLE = (
    "accuracy",
    "macro_f1",
    "balanced_accuracy",
    "ontology_accuracy",
    "ontology_macro_f1",
    "map_at_r",
    "silhouette",
    "study_mixing",
    "neighborhood_agreement",
    "hidden_gene_agreement",
    "nmse",
)


class Evidence(NamedTuple):
    """What embeddings are judged by, the same for all of them.

    Attributes:
      labels: labels of query and reference cells.
      order: the labels in an order in which relatives lie together.
      studies: study of each query cell, then of each reference cell.
      markers: log-normalised expression of the query cells in the reference's most variable genes.
      reference_markers: of the reference cells.
      hidden: log-normalised expression of the query cells in the hidden genes.
    """

    labels: Labelled
    order: Int[np.ndarray, " k"]
    studies: Shaped[np.ndarray, " n"]
    markers: Float[np.ndarray, "q g"]
    reference_markers: Float[np.ndarray, "r g"]
    hidden: sp.csr_matrix


def report_of(
    embeddings: Mapping[str, Embedding], query: Cells, reference: Cells, *, k: int = 15
) -> dict[str, Any]:
    """The scores of the first embedding, and beside them those of the others.

    Args:
      embeddings: by name, the first the model's.
      query: labelled cells of the genes that the model reads, log-normalised.
      reference: labelled cells of the same genes, log-normalised.
      k: neighbours that vote.

    Returns:
      See `MetricLearning.evaluate`.
    """
    evidence = evidence_of(query, reference)
    found = {name: embedding_report(one, evidence, k) for name, one in embeddings.items()}
    first, *others = found
    cells = {"num_cells": len(query), **counts(evidence.labels), "k": k}
    return plain(cells | found[first] | {"beside": {name: found[name] for name in others}})


def evidence_of(query: Cells, reference: Cells) -> Evidence:
    """Labels, studies and expression of log-normalised cells."""
    labels = number_alike(query, reference)
    x, y = query.matrix(), reference.matrix()
    genes = most_variable(y)
    return Evidence(
        labels=labels,
        order=depth_first_order(labels.names, query.ontology),
        studies=np.concatenate([study_of(query), study_of(reference)]),
        markers=x[:, genes].toarray(),
        reference_markers=y[:, genes].toarray(),
        hidden=x[:, hidden_genes(len(query.genes))],
    )


def embedding_report(embedding: Embedding, evidence: Evidence, k: int) -> dict[str, Any]:
    """One embedding's scores, intervals, rows by type, confusion matrix, and why scores are missing."""
    labels, (z, z_reference) = evidence.labels, embedding[:2]
    predicted = predict(z, z_reference, labels, k)
    C = confusion(labels.query, predicted, len(labels.names))
    widths = silhouette_widths(z, labels)
    per_cell = {"silhouette": widths} | retrieval_per_cell(
        z, labels.query, z_reference, labels.reference, descendants=labels.descendants
    )
    if embedding.error is not None:
        per_cell |= {"mse": embedding.error, "power": embedding.power}

    neighbors = nearest_neighbors(z, z_reference, k).indices
    around, notes = mean_of_neighbors(evidence.reference_markers, neighbors), {}
    mixing = lisi(np.concatenate([z, z_reference]), evidence.studies)
    if isinstance(mixing, str):
        notes["study_mixing"] = mixing
    if embedding.hidden is None:
        notes["hidden_gene_agreement"] = "no genes can be hidden from it"
    else:
        pairs = ranked_pairs(embedding.hidden, evidence.hidden)

    def scores(weights: Num[np.ndarray, " q"]) -> dict[str, float]:
        """With each query cell counted so many times; the reference cells stay."""
        weighted = confusion(labels.query, predicted, len(labels.names), weights)
        found = confusion_scores(weighted, labels.descendants, C) | cell_means(per_cell, weights)
        found["neighborhood_agreement"] = neighborhood_agreement(evidence.markers, around, weights)
        if "study_mixing" not in notes:
            each = np.concatenate([weights, np.ones(len(z_reference))])
            found["study_mixing"] = scaled_median(mixing, each, len(np.unique(evidence.studies)))
        if "hidden_gene_agreement" not in notes:
            found["hidden_gene_agreement"] = hidden_gene_agreement(pairs, weights)
        return found

    shown = [i for i in evidence.order if C[i].any() or C[:, i].any()]
    return scores(np.ones(len(z))) | {
        **dict.fromkeys(notes),
        "intervals": intervals(scores, len(z)),
        "per_type": per_type(C, labels, widths, evidence.order),
        "confusion": {
            "labels": [labels.names[i] for i in shown],
            "counts": C[np.ix_(shown, shown)].astype(int).tolist(),
        },
        "notes": notes,
    }


def scores_alone(embedding: Embedding, query: Cells) -> dict[str, Any]:
    """What needs no reference cells: silhouette width and reconstruction."""
    labels = number_alike(query, query)
    per_cell = {"silhouette": silhouette_widths(embedding.query, labels)}
    if embedding.error is not None:
        per_cell |= {"mse": embedding.error, "power": embedding.power}
    return plain({"num_cells": len(query)} | cell_means(per_cell, np.ones(len(query))))


def cell_means(
    per_cell: dict[str, Float[np.ndarray, " q"]], weights: Num[np.ndarray, " q"]
) -> dict[str, float]:
    """Means over cells, and nmse: mean squared error over mean squared expression."""
    means = weighted_means(per_cell, weights)
    if "power" in means:
        power = means.pop("power")
        means["nmse"] = means["mse"] / power if power > 0 else float("nan")
    return means


def silhouette_widths(z: Float[np.ndarray, "q d"], labels: Labelled) -> Float[np.ndarray, " q"]:
    """Ontology-aware silhouette width of each query cell in cosine distance; NaN: it has none."""
    below = labels.descendants if labels.names else None
    return silhouette.silhouette_widths(z, labels.query, descendants=below)


def logged(cells: Cells) -> Cells:
    """The same cells with log-normalised values, in memory."""
    return dataclasses.replace(cells, X=log_normalized(cells), values="lognorm")


def study_of(cells: Cells) -> Shaped[np.ndarray, " cells"]:
    """The name of each cell's study."""
    return np.array(cells.study_names, object)[cells.studies]


def score_table(report: dict[str, Any]) -> str:
    """The main scores as text, with their intervals: a column for each embedding."""
    columns = {MODEL: report} | report.get("beside", {})
    names = [name for name in TABLE if any(name in one for one in columns.values())]
    left, width = max(map(len, names)), max(22, *map(len, columns)) + 2
    lines = [" " * left + "".join(f"{name:>{width}}" for name in columns)]
    for name in names:
        texts = (score_text(one, name) for one in columns.values())
        lines.append(f"{name:{left}}" + "".join(f"{text:>{width}}" for text in texts))
    lacking = defaultdict(list)
    for column, one in columns.items():
        for name, why in one.get("notes", {}).items():
            lacking[name, why].append(column)
    lines += [f"{name} of {', '.join(of)}: {why}" for (name, why), of in lacking.items()]
    if "num_scored" not in report:
        lines.append(
            "labels are scored beside reference cells: reference= / --reference, --studies"
        )
    else:
        lines.append(
            f"{report['num_scored']} of {report['num_cells']} query cells have a label among those of "
            f"the {report['num_reference']} reference cells"
        )
    return "\n".join(line.rstrip() for line in lines)


def score_text(report: dict[str, Any], name: str) -> str:
    """A score with its interval, as far as there are any."""
    if report.get(name) is None:
        return "-" if name in report else ""
    low, high = report.get("intervals", {}).get(name, (None, None))
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{report[name]:.3f}{interval}"


def plain(value: Any) -> Any:
    """The value as JSON has it: numpy's types become Python's, NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
