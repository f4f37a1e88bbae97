"""Pictures: training curves, and those of an evaluation. Needs matplotlib (extra `demo` or `eval`)."""

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "loss": ("loss", "val_loss"),
    "triplet loss": ("triplet_loss", "val_triplet_loss"),
    "reconstruction (mse)": ("mse", "val_mse"),
    "hard fraction": ("hard_fraction", "val_hard_fraction"),
    "triplets per batch": ("num_triplets", "num_nonzero"),
    "held-out silhouette": ("val_silhouette",),
    "mean squared distance": ("within_distance", "between_distance"),
    "gradient norm": ("gradient_norm",),
}
BLUE, ORANGE = "#2f6c9e", "#c0652b"
NAMED = 40  # groups of a map that have a colour of their own


def require_pictures() -> None:
    """Raises an ImportError where what draws an evaluation's page is not installed."""
    needed = {"matplotlib": "matplotlib", "umap": "umap-learn"}
    absent = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ImportError(
            f"a page with pictures needs {' and '.join(absent)}: pip install 'jaxmetric[eval]'"
        )


def plot_history(history: pd.DataFrame, path: str | Path) -> None:
    """Draws the curves of training to a picture file.

    Args:
      history: `MetricLearning.history`, a row of metrics per epoch.
      path: where to write; its suffix says the format.

    Raises:
      ImportError: without matplotlib.
    """
    history_figure(history).savefig(path, dpi=120)


def history_figure(history: pd.DataFrame) -> "Figure":
    """The curves of `MetricLearning.history`, epoch by epoch."""
    shown = {title: [n for n in names if n in history] for title, names in PANELS.items()}
    shown = {title: names for title, names in shown.items() if names}
    columns = -(-len(shown) // 2)
    figure = _figure(4 * columns, 6)
    for i, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(2, columns, i + 1)
        for name in names:
            axes.plot(history["epoch"], history[name], marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.locator_params(axis="x", integer=True)
        axes.legend(frameon=False)
    return figure


def confusion_figure(
    counts: Int[np.ndarray, "k k"], labels: Sequence[str], related: Bool[np.ndarray, "k k"]
) -> "Figure":
    """Per cent of each true label's cells by predicted label; outlined where one is the other's ancestor.

    Rows of labels that no cell has are grey.
    """
    from matplotlib.patches import Rectangle

    k, side = len(labels), min(0.32, 30 / len(labels))  # of a cell, in inches
    total = counts.sum(1, keepdims=True)
    shares = np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan)
    figure = _figure(4 + side * k, 3.2 + side * k)
    axes = figure.add_subplot(facecolor="#eeeeee")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.argwhere(related & ~np.eye(k, dtype=bool)):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=ORANGE, lw=0.8))
    for i, j in np.argwhere(shares >= 0.5) if k <= 40 else ():
        color = "white" if shares[i, j] > 60 else "#333333"
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=color, size=7)
    names = [_short(name) for name in labels]
    axes.set_xticks(range(k), names, rotation=90, size=min(8, 50 * side))
    axes.set_yticks(range(k), names, size=min(8, 50 * side))
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, shrink=0.5, label="% of the true type's cells")
    return figure


def map_figure(
    places: Float[np.ndarray, "n 2"],
    is_query: Bool[np.ndarray, " n"],
    groups: Mapping[str, tuple[Sequence[str], Int[np.ndarray, " n"]]],
    method: str = "UMAP",
) -> "Figure":
    """Cells in two dimensions, once for each grouping: query cells dark, reference cells pale behind.

    Args:
      places: of the cells.
      is_query: which are query cells.
      groups: by title, the groups' names in the order of the legend, and each cell's group. Groups after
        the NAMED largest are grey.
      method: what the places are by.
    """
    figure = _figure(6 * len(groups), 7.5)
    for i, (title, (names, group)) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), i + 1, box_aspect=1)
        size = np.bincount(group, minlength=len(names))
        named = [g for g in np.sort(np.argsort(-size, kind="stable")[:NAMED]) if size[g]]
        colors = np.full((len(names), 4), 0.7)
        colors[named] = _colors(len(named))
        for which, alpha in ((~is_query, 0.2), (is_query, 0.8)):
            axes.scatter(*places[which].T, s=5, c=colors[group[which], :3], alpha=alpha, lw=0)
        for g in named:
            axes.scatter([], [], s=25, color=colors[g], label=_short(names[g]))
        axes.set(title=title, xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08)}
        axes.legend(**place, ncols=2, fontsize=7, frameon=False)
    return figure


def distance_figure(
    distances: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]],
) -> "Figure":
    """Of each embedding, the distances to the nearest reference cell of the own and an unrelated type."""
    figure = _figure(4.2 * len(distances), 3)
    for i, (name, both) in enumerate(distances.items()):
        axes = figure.add_subplot(1, len(distances), i + 1)
        finite = [one[np.isfinite(one)] for one in both]
        edges = np.histogram_bin_edges(np.concatenate(finite), 60)
        kinds = zip(("own type", "unrelated type"), (BLUE, ORANGE), finite, strict=True)
        for label, color, one in kinds:
            axes.hist(one, edges, histtype="stepfilled", alpha=0.55, color=color, label=label)
        axes.set(title=name, xlabel="distance", ylabel="query cells")
        axes.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> "Figure":
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _colors(number: int) -> Float[np.ndarray, "n 4"]:
    import matplotlib

    maps = ("tab10",) if number <= 10 else ("tab20", "tab20b", "tab20c")
    found = np.concatenate([matplotlib.colormaps[name].colors for name in maps])
    return np.insert(np.resize(found, (number, 3)), 3, 1, axis=1)


def _short(name: str) -> str:
    return textwrap.shorten(name, 58, placeholder="…")
