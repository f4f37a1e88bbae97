"""The directory of a training run: what the run is, its metrics, its checkpoints."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmetric.cells.cells import Cells
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.config import Config
from jaxmetric.files import write_json, write_text
from jaxmetric.sharding import is_first_process, wait_for_all
from jaxmetric.training.checkpoints import Checkpoints
from jaxmetric.training.step import TrainState

RUN_FORMAT = "jaxmetric run 1"


class Carried(NamedTuple):
    """The arrays that training carries: its state, and the variables of the best epoch so far."""

    state: TrainState
    best: dict | None


@dataclasses.dataclass
class Progress:
    """What a run has logged: a row for each epoch, and the infos of the steps of the one under way."""

    history: list[dict] = dataclasses.field(default_factory=list)
    infos: list[dict] = dataclasses.field(default_factory=list)


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
        if is_first_process():
            _open(directory, identity)
        wait_for_all("run directory")
        self._checkpoints = Checkpoints(directory / "checkpoints")

    def resume(self, initial: Carried) -> tuple[Carried, Progress]:
        """What the newest checkpoint holds; `metrics.jsonl` then says just what was logged up to it."""
        found = self._checkpoints.restore(initial)
        carried, progress = (found[0], Progress(**found[1])) if found else (initial, Progress())
        if is_first_process():
            lines = "".join(f"{_line(row)}\n" for row in progress.history)
            write_text(self.directory / "metrics.jsonl", lines)
            if self._summary_writer is not None:
                past = (
                    int(carried.state.step) + 1 if found else None
                )  # later points are of lost steps
                curves = str(self.directory / "tensorboard")
                self._curves = self._summary_writer(curves, purge_step=past)
        return carried, progress

    @property
    def newest_checkpoint(self) -> Path | None:
        """Where the newest checkpoint is."""
        step = self._checkpoints.newest
        return None if step is None else self._checkpoints.directory / str(step)

    def log(self, row: dict) -> None:
        """Adds an epoch's metrics."""
        if not is_first_process():
            return
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(_line(row) + "\n")
        if self._curves is not None:
            for name in row.keys() - {"epoch", "step"}:
                if row[name] is not None:
                    self._curves.add_scalar(name, row[name], row["step"])

    def save(self, carried: Carried, step: int, progress: Progress) -> None:
        """Starts to save a checkpoint."""
        self._checkpoints.save(carried, step, dataclasses.asdict(progress))

    def close(self) -> None:
        """Waits until the checkpoints are on disk."""
        self._checkpoints.close()
        if self._curves is not None:
            self._curves.close()


def _open(directory: Path, identity: dict) -> None:
    path = directory / "run.json"
    if path.exists():
        check_same(path, identity)
        for unfinished in directory.glob(
            ".model.*"
        ):  # of a run that was killed while it wrote its model
            shutil.rmtree(unfinished)
    elif directory.exists() and (not directory.is_dir() or _has_foreign_files(directory)):
        raise ValueError(
            f"{directory} exists and is not the directory of a run (there is no {path}): choose "
            "another directory, or remove what is there."
        )
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)


def _has_foreign_files(directory: Path) -> bool:
    """Whether it holds anything but what a run that was killed while it wrote `run.json` left."""
    return any(not path.name.startswith(".run.json.") for path in directory.iterdir())


def _line(row: dict) -> str:
    return json.dumps(row, allow_nan=False)


def identity(train: Cells, held_out: Cells | None, config: Config) -> dict:
    """What makes a run this run: config, genes, labels, studies, and digests of the cells."""
    return {
        "format": RUN_FORMAT,
        "config": config.to_dict(),
        "genes": _digest(train.genes),
        "labels": list(train.label_names),
        "ontology": train.ontology.version if train.ontology else None,
        "studies": list(train.study_names),
        "values": train.values,
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


def check_same(path: Path, identity: dict) -> dict:
    """The content of a file that begins with an identity, which must be this one.

    Raises:
      ValueError: when it is another; the message says what differs.
    """
    try:
        found = json.loads(path.read_text())
        before = _flat({key: found.get(key) for key in identity})
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
    return found


def _flat(identity: dict) -> dict:
    config = {f"config.{name}": value for name, value in identity.get("config", {}).items()}
    return {key: value for key, value in identity.items() if key != "config"} | config


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest_cells(cells: Cells) -> str:
    if isinstance(cells.X, StoredRows):
        columns = () if cells.X.columns is None else (cells.X.columns,)
        values = (cells.X.fingerprint, cells.X.rows, *columns)
    else:
        values = (cells.X.indptr, cells.X.indices, cells.X.data)
    arrays = (*values, cells.labels, cells.studies)
    return f"{len(cells)} cells, sha256 {_digest(arrays)}"


def _digest(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part.encode() + b"\0" if isinstance(part, str) else np.ascontiguousarray(part)
        )
    return digest.hexdigest()
