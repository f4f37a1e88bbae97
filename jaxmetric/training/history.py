"""What the metrics of the epochs so far say: which epoch was best, and whether patience is out."""

from jaxmetric.config import HIGHER_IS_BETTER, Config


def best_epoch(history: list[dict], config: Config) -> int:
    """The number of the first epoch with the best `monitor`, from 1; 0 without monitor or values."""
    sign = -1 if config.monitor in HIGHER_IS_BETTER else 1
    scored = [row for row in history if row.get(config.monitor or "") is not None]
    values = [(sign * row[config.monitor], row["epoch"]) for row in scored]
    return min(values, default=(0, 0))[1]


def model_row(history: list[dict], config: Config) -> dict:
    """The metrics of the epoch whose variables become the model: the best one, else the last."""
    return history[(best_epoch(history, config) or len(history)) - 1]


def out_of_patience(history: list[dict], config: Config) -> bool:
    """Whether the monitor got no better for `patience` epochs."""
    best = best_epoch(history, config)
    return config.patience is not None and len(history) - best >= config.patience
