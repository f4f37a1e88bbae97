"""The report as one HTML page with its pictures inside: nothing else is needed to read it."""

import base64
import html
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxmetric.cells.cells import Cells
from jaxmetric.cells.source import some
from jaxmetric.evaluation import plots
from jaxmetric.evaluation.embeddings import MODEL, Embedding
from jaxmetric.evaluation.report import score_text, study_of
from jaxmetric.labels.label_set import depth_first_order
from jaxmetric.metric.neighbors import nearest_neighbors
from jaxmetric.scores.label_transfer import Labelled, number_alike
from jaxmetric.scores.separation import nearest_own_and_unrelated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 5000  # cells of the map, and query cells whose distances are drawn

STYLE = """
body { font: 15px/1.55 Georgia, "Times New Roman", serif; color: #222; background: #fff;
  max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; font-weight: normal; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; font-weight: normal; margin: 2.6rem 0 .6rem; }
p, figcaption { max-width: 46rem; }
figcaption, .note { color: #555; font-size: .88rem; }
figure { margin: 0; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.4 "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; border-top: 1.5px solid #222; border-bottom: 1.5px solid #222; }
th { text-align: right; font-weight: 600; border-bottom: 1px solid #222; padding: .35rem .7rem; }
td { text-align: right; padding: .22rem .7rem; white-space: nowrap; }
th.text, td.text { text-align: left; white-space: normal; }
td small { color: #777; }
"""

MEANING = {
    "accuracy": "transferred label is the true one",
    "macro_f1": "F1, mean over types true or predicted",
    "macro_f1_present": "F1, mean over types that query cells have",
    "balanced_accuracy": "recall, mean over types",
    "ontology_accuracy": "transferred label is the true one or a descendant",
    "ontology_macro_f1": "F1, true or predicted, descendants count as the type",
    "ontology_macro_f1_present": "F1, types of query cells, descendants count as the type",
    "ontology_balanced_accuracy": "recall, descendants count as the type",
    "as_subtype": "... a descendant of the true one",
    "as_parent": "... an ancestor of the true one",
    "precision_at_1": "nearest reference cell is of the type",
    "map_at_r": "mean average precision at R",
    "ontology_map_at_r": "the same, descendants count as the type",
    "silhouette": "silhouette width, ontology-aware",
    "study_mixing": "iLISI: studies among neighbours, 0 to 1",
    "neighborhood_agreement": "expression told by reference neighbours, r",
    "hidden_gene_agreement": "distances against those in hidden genes, ρ",
    "nmse": "error of the reconstruction (lower is better)",
}


def page_of(
    report: Mapping[str, Any],
    embeddings: Mapping[str, Embedding],
    query: Cells,
    reference: Cells,
    history: pd.DataFrame,
) -> str:
    """The page.

    Args:
      report: from `report_of`.
      embeddings: those that the report is about, the first the model's.
      query: the query cells.
      reference: the reference cells.
      history: the model's, a row per epoch; none is drawn where it is empty.
    """
    labels = number_alike(query, reference)
    sections = [
        ("Scores", _scores(report)),
        ("Cell types", _types(report)),
        ("Confusion", _confusion(report, query)),
        ("Map", _map(embeddings[MODEL], labels, query, reference)),
        ("Distances", _distances(embeddings, labels)),
    ]
    if len(history):
        caption = "Loss and its parts by epoch; val_ marks held-out cells, where there were any."
        sections.append(("Training", _picture(plots.history_figure(history), caption)))
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    studies, others = (some(sorted(set(study_of(cells))), 8) for cells in (query, reference))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Evaluation of a cell embedding</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Evaluation of a cell embedding</h1>
<p>{report["num_cells"]} query cells ({_text(studies)}); {len(reference)} reference cells
({_text(others)}). Labels are transferred from the {report["k"]} nearest reference cells, each weighted
by 1 / distance. {report["num_scored"]} query cells have a label that a reference cell has: these are
scored.</p>
{body}
</body>
</html>
"""


def _scores(report: Mapping[str, Any]) -> str:
    columns = {MODEL: report} | report["beside"]
    rows = [
        (name, _text(meaning), *(_score(one, name) for one in columns.values()))
        for name, meaning in MEANING.items()
        if any(name in one for one in columns.values())
    ]
    table = _table(("score", "what it is", *columns), rows, text=2)
    return f"""{table}
<p class="note">In brackets: 95 % percentile bootstrap over query cells, 200 resamples. The intervals
say how far a score would move with other cells of these studies. They leave out what else could have
been different: the training seed, the reference cells, the study.</p>"""


def _types(report: Mapping[str, Any]) -> str:
    names = ("precision", "recall", "f1", "ontology_recall", "silhouette")
    rows = []
    for row in report["per_type"]:
        mistaken = "" if row["mistaken_for"] is None else _text(row["mistaken_for"])
        share = "" if row["mistaken"] is None or not mistaken else f" ({_percent(row['mistaken'])})"
        numbers = ("–" if row[name] is None else f"{row[name]:.3f}" for name in names)
        rows.append((_text(row["cell_type"]), mistaken + share, row["num_cells"], *numbers))
    head = ("cell type", "most often mistaken for", "cells", "precision", "recall", "F1")
    table = _table((*head, "ontology recall", "silhouette"), rows, text=2)
    return f"""{table}
<p class="note">Query cells by type, in the order of the ontology. Ontology recall also counts
descendants of the type. Types without recall have no reference cell.</p>"""


def _confusion(report: Mapping[str, Any], query: Cells) -> str:
    labels, counts = report["confusion"]["labels"], np.array(report["confusion"]["counts"])
    related = np.eye(len(labels), dtype=bool)
    if query.ontology is not None:
        related = query.ontology.related(labels)
    caption = (
        "Per cent of each type's cells (rows) by transferred label (columns), labels in depth-first "
        "order of the ontology. Outlined: one label is an ancestor of the other. Grey: no query cell is "
        "of the type."
    )
    return _picture(plots.confusion_figure(counts, labels, related), caption)


def _map(embedding: Embedding, labels: Labelled, query: Cells, reference: Cells) -> str:
    z = np.concatenate([embedding.query, embedding.reference])
    rows = some_of(len(z))
    order = depth_first_order(labels.names, query.ontology)
    types = [*(labels.names[i] for i in order), "no label"]
    place = np.append(np.argsort(order), len(order))  # of each label, and of none, in that order
    number = place[np.concatenate([labels.query, labels.reference])]
    studies, study = np.unique(
        np.concatenate([study_of(query), study_of(reference)]).astype(str), return_inverse=True
    )
    figure = plots.map_figure(
        umap_of(z[rows]),
        rows < len(query),
        {"cell type": (types, number[rows]), "study": (studies.tolist(), study[rows])},
    )
    drawn = "All" if len(rows) == len(z) else f"{len(rows)} of {len(z)} cells, drawn at random:"
    caption = (
        f"{drawn} query cells (dark) and reference cells (pale) by UMAP of the model's embedding, "
        "coloured by type and by study. A UMAP keeps neighbours, not distances or areas."
    )
    return _picture(figure, caption)


def _distances(embeddings: Mapping[str, Embedding], labels: Labelled) -> str:
    known, scored = labels.reference >= 0, np.flatnonzero(labels.scored)
    rows = scored[some_of(len(scored))]
    both = {
        name: nearest_own_and_unrelated(
            one.query[rows],
            labels.query[rows],
            one.reference[known],
            labels.reference[known],
            labels.descendants,
        )
        for name, one in embeddings.items()
    }
    closer = ", ".join(f"{(near < far).mean():.1%} in {name}" for name, (near, far) in both.items())
    caption = (
        "Distance of query cells to the nearest reference cell of their own type, and to the nearest of "
        f"an unrelated type (no ancestor, no descendant). Nearer to their own type: {closer}."
    )
    return _picture(plots.distance_figure(both), caption)


def umap_of(z: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """UMAP of exact neighbours in Euclidean distance; the same seed gives the same picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        k = min(15, len(z) - 1)
        neighbors = nearest_neighbors(z, z, k)  # each cell its own first, as UMAP counts them
        return umap.UMAP(
            n_neighbors=k, precomputed_knn=tuple(neighbors), random_state=seed, n_jobs=1
        ).fit_transform(z)


def some_of(number: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Numbers of at most MOST cells, drawn without replacement, in order."""
    return np.sort(np.random.default_rng(seed).permutation(number)[:MOST])


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "&lt;1%"


def _picture(figure: "Figure", caption: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, bbox_inches="tight")  # long legends, too
    data = base64.b64encode(content.getvalue()).decode()
    said = _text(caption)
    return f"""<figure>
<img alt="{said}" src="data:image/png;base64,{data}">
<figcaption>{said}</figcaption>
</figure>"""


def _table(head: tuple, rows: list[tuple], text: int) -> str:
    """A table whose first columns are text and whose others are numbers; cells are HTML."""

    def line(tag: str, cells: tuple) -> Iterator[str]:
        for i, cell in enumerate(cells):
            kind = ' class="text"' if i < text else ""
            yield f"<{tag}{kind}>{cell}</{tag}>"

    lines = [("th", tuple(map(_text, head))), *(("td", row) for row in rows)]
    body = "\n".join(f"<tr>{''.join(line(tag, cells))}</tr>" for tag, cells in lines)
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def _score(report: Mapping[str, Any], name: str) -> str:
    """A score with its interval, or why there is none."""
    if name in report["notes"]:
        return f"<small>{_text(report['notes'][name])}</small>"
    number, bracket, rest = score_text(report, name).partition(" [")
    return f"{number} <small>[{rest}</small>" if bracket else number


def _text(text: object) -> str:
    return html.escape(str(text))
