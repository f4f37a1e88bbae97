"""The directory of a training run: what the run is, its metrics, its checkpoints."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from jaxmetric.checkpoint import Checkpoints, write_json, write_text
from jaxmetric.config import Config
from jaxmetric.data import Cells
from jaxmetric.train import TrainState

RUN_FORMAT = "jaxmetric run 1"


class Run:
    """A run's directory. Opening it checks that it is new, or of this very run.

    Raises:
      ValueError: when it holds something else, or a run of other data or another config; the message
        says what differs.
    """

    def __init__(self, directory: Path, identity: dict, tensorboard: bool = False) -> None:
        self.directory = directory
        self._summary_writer = _summary_writer() if tensorboard else None
        self._curves = None
        self._metrics = directory / "metrics.jsonl"
        path = directory / "run.json"
        if path.exists():
            _check_same(path, identity)
        elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(
                f"{directory} exists and is not the directory of a run (there is no {path}): choose "
                "another directory, or remove what is there."
            )
        else:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(path, identity)
        self._checkpoints = Checkpoints(directory / "checkpoints")

    def resume(self, initial: TrainState) -> tuple[TrainState, list[dict]]:
        """The newest state and the history up to it; later rows of `metrics.jsonl` are removed."""
        state, epoch = self._checkpoints.restore(initial)
        lines = self._metrics.read_text().splitlines()[:epoch] if self._metrics.exists() else []
        write_text(self._metrics, "".join(f"{line}\n" for line in lines))
        history = [json.loads(line) for line in lines]
        if self._summary_writer is not None:
            past = history[-1]["step"] + 1 if history else None  # later points are of a lost epoch
            curves = str(self.directory / "tensorboard")
            self._curves = self._summary_writer(curves, purge_step=past)
        return state, history

    def record(self, state: TrainState, row: dict) -> None:
        """Adds an epoch: its row first, so that no checkpoint is ahead of the metrics."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self._checkpoints.save(state, row["epoch"])
        if self._curves is not None:
            for name in row.keys() - {"epoch", "step"}:
                if row[name] is not None:
                    self._curves.add_scalar(name, row[name], row["step"])

    def close(self) -> None:
        """Waits until the checkpoints are on disk."""
        self._checkpoints.close()
        if self._curves is not None:
            self._curves.close()


def identity(train: Cells, held_out: Cells | None, config: Config) -> dict:
    """What makes a run this run: config, genes, labels, studies, and digests of the cells."""
    return {
        "format": RUN_FORMAT,
        "config": config.to_dict(),
        "genes": _digest(train.genes),
        "labels": list(train.label_names),
        "ontology": train.ontology.version if train.ontology else None,
        "studies": list(train.study_names),
        "training cells": _digest_cells(train),
        "validation cells": None if held_out is None else _digest_cells(held_out),
    }


def finite(row: dict) -> dict:
    """The row with None for what is not a number: JSON has no NaN."""
    return {k: v if math.isfinite(v) else None for k, v in row.items()}


def _summary_writer():
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard logs need tensorboardX: pip install 'jaxmetric[tensorboard]'"
        ) from error
    return SummaryWriter


def _check_same(path: Path, identity: dict) -> None:
    try:
        found = json.loads(path.read_text())
        before = _flat(found)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or was changed: {error}") from error
    now = _flat(identity)
    differ = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if differ:
        details = "; ".join(
            f"{key}: there {_short(before.get(key))}, here {_short(now.get(key))}" for key in differ
        )
        raise ValueError(
            f"{path.parent} belongs to another run ({details}): choose another directory, or train "
            "with the same data and config to go on with that run."
        )


def _flat(identity: dict) -> dict:
    config = {f"config.{name}": value for name, value in identity.get("config", {}).items()}
    return {key: value for key, value in identity.items() if key != "config"} | config


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest_cells(cells: Cells) -> str:
    arrays = (cells.X.indptr, cells.X.indices, cells.X.data, cells.labels, cells.studies)
    return f"{len(cells)} cells, sha256 {_digest(arrays)}"


def _digest(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part.encode() + b"\0" if isinstance(part, str) else np.ascontiguousarray(part)
        )
    return digest.hexdigest()
