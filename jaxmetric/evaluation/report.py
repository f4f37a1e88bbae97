"""The evaluation report: how good an embedding of query cells is, beside others of the same cells."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Num, Shaped

from jaxmetric.cells.cells import Cells
from jaxmetric.evaluation.embeddings import MODEL, Embedding, Prediction
from jaxmetric.labels.label_set import depth_first_order
from jaxmetric.metric import retrieval, silhouette
from jaxmetric.metric.neighbors import nearest_neighbors
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
from jaxmetric.scores.ratio import ratio

TABLE = (
    "accuracy",
    "macro_f1",
    "macro_f1_present",
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
WIDTH = 110  # of its notes
OF_EMBEDDINGS = (
    *(kind + name for kind in ("", "ontology_") for name in retrieval.NAMES),
    "silhouette",
    "study_mixing",
    "neighborhood_agreement",
    "hidden_gene_agreement",
)
Scores = Callable[[Float[np.ndarray, "b q"]], dict[str, Float[np.ndarray, " b"]]]


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
    compared: Mapping[str, Embedding | Prediction], query: Cells, reference: Cells, *, k: int = 15
) -> dict[str, Any]:
    """The scores of the first embedding, and beside them those of the others.

    Args:
      compared: by name, the first the model's embedding.
      query: labelled cells of the genes that the model reads, log-normalised.
      reference: labelled cells of the same genes, log-normalised.
      k: neighbours that vote.

    Returns:
      See `MetricLearning.evaluate`.
    """
    evidence = evidence_of(query, reference)
    found = {
        name: embedding_report(one, evidence, k)
        if isinstance(one, Embedding)
        else prediction_report(one, evidence)
        for name, one in compared.items()
    }
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
    widths = silhouette_widths(z, labels)
    per_cell = {"silhouette": widths} | retrieval.retrieval_per_cell(
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

    def scores(weights: Float[np.ndarray, "b q"]) -> dict[str, Float[np.ndarray, " b"]]:
        found = cell_means(per_cell, weights)
        found["neighborhood_agreement"] = neighborhood_agreement(evidence.markers, around, weights)
        if "study_mixing" not in notes:
            others, studies = np.ones(len(z_reference)), len(np.unique(evidence.studies))
            each = (np.concatenate([one, others]) for one in weights)
            found["study_mixing"] = np.array([scaled_median(mixing, one, studies) for one in each])
        if "hidden_gene_agreement" not in notes:
            found["hidden_gene_agreement"] = hidden_gene_agreement(pairs, weights)
        return found

    return _report(predicted, scores, widths, notes, evidence)


def prediction_report(prediction: Prediction, evidence: Evidence) -> dict[str, Any]:
    """The same of labels alone: the scores of embeddings are missing."""
    notes = dict.fromkeys(OF_EMBEDDINGS, "labels without an embedding")
    widths = np.full(len(prediction.labels), np.nan)
    return _report(prediction.labels, lambda weights: {}, widths, notes, evidence)


def _report(
    predicted: Int[np.ndarray, " q"],
    others: Scores,
    widths: Float[np.ndarray, " q"],
    notes: dict[str, str],
    evidence: Evidence,
) -> dict[str, Any]:
    """The report of predicted labels, with other scores.

    Args:
      predicted: label of each query cell; -1: not scored.
      others: the other scores with each query cell counted so many times; the reference cells stay.
      widths: silhouette width of each query cell; NaN: it has none.
      notes: why scores are missing.
      evidence: what the labels are judged by.
    """
    labels = evidence.labels
    C = confusion(labels.query, predicted, len(labels.names))

    def scores(weights: Float[np.ndarray, "b q"]) -> dict[str, Float[np.ndarray, " b"]]:
        matrices = (confusion(labels.query, predicted, len(C), one) for one in weights)
        found = [confusion_scores(one, labels.descendants, C) for one in matrices]
        return {name: np.array([one[name] for one in found]) for name in found[0]} | others(weights)

    shown = [i for i in evidence.order if C[i].any() or C[:, i].any()]
    return {name: value for name, (value,) in scores(np.ones((1, len(predicted)))).items()} | {
        **dict.fromkeys(notes),
        "intervals": intervals(scores, len(predicted)),
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
    per_cell: dict[str, Float[np.ndarray, " q"]], weights: Num[np.ndarray, "*b q"]
) -> dict[str, Float[np.ndarray, "*b"]]:
    """Means over cells, and nmse: mean squared error over mean squared expression."""
    means = weighted_means(per_cell, weights)
    if "power" in means:
        means["nmse"] = ratio(means["mse"], means.pop("power"))
    return means


def silhouette_widths(z: Float[np.ndarray, "q d"], labels: Labelled) -> Float[np.ndarray, " q"]:
    """Ontology-aware silhouette width of each query cell in cosine distance; NaN: it has none."""
    below = labels.descendants if labels.names else None
    return silhouette.silhouette_widths(z, labels.query, descendants=below)


def study_of(cells: Cells) -> Shaped[np.ndarray, " cells"]:
    """The name of each cell's study."""
    return np.array(cells.study_names, object)[cells.studies]


def score_table(report: dict[str, Any]) -> str:
    """The main scores as text, with their intervals: a column for each embedding."""
    columns = {MODEL: report} | report.get("beside", {})
    names = [name for name in TABLE if any(name in one for one in columns.values())]
    texts = {
        head: [head, *(score_text(one, name) for name in names)] for head, one in columns.items()
    }
    left, widths = max(map(len, names)), {head: max(map(len, texts[head])) + 2 for head in columns}
    lines = [
        f"{name:{left}}" + "".join(f"{texts[head][i]:>{widths[head]}}" for head in columns)
        for i, name in enumerate(["", *names])
    ]
    lines += _notes(columns)
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


def _notes(columns: Mapping[str, dict[str, Any]]) -> list[str]:
    """Why scores of the table are missing, those of the same columns and reason in one line."""
    of, lines = defaultdict(list), defaultdict(list)
    for column, one in columns.items():
        for name, why in one.get("notes", {}).items():
            of[name, why].append(column)
    for (name, why), lacking in of.items():
        if name in TABLE:
            lines[", ".join(lacking), why].append(name)
    said = (f"{', '.join(names)} of {of}: {why}" for (of, why), names in lines.items())
    return [line for one in said for line in textwrap.wrap(one, WIDTH, break_long_words=False)]


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
