"""Pictures: the training curves. Needs matplotlib (extra `demo`)."""

from pathlib import Path

import pandas as pd

PANELS = {
    "loss": ("loss", "val_loss"),
    "triplet loss": ("triplet_loss", "val_triplet_loss"),
    "reconstruction (mse)": ("mse", "val_mse"),
    "hard fraction": ("hard_fraction", "val_hard_fraction"),
    "triplets per batch": ("num_triplets", "num_nonzero"),
    "held-out silhouette": ("val_silhouette",),
}


def plot_history(history: pd.DataFrame, path: str | Path) -> None:
    """Draws the curves of `MetricLearning.history` to a picture file."""
    import matplotlib.figure

    shown = {title: [n for n in names if n in history] for title, names in PANELS.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = matplotlib.figure.Figure(figsize=(4 * min(3, len(shown)), 6), layout="constrained")
    for i, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(2, -(-len(shown) // 2), i + 1)
        for name in names:
            axes.plot(history["epoch"], history[name], marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
