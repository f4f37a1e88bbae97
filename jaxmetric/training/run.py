"""The directory of a training run: its identity, its metrics, its checkpoints."""

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
from jaxmetric.sharding import is_first_process, num_processes, wait_for_all
from jaxmetric.training.checkpoints import Checkpoints
from jaxmetric.training.step import TrainState

RUN_FORMAT = "jaxmetric run 1"


class Snapshot(NamedTuple):
    """The arrays of a checkpoint: the training state, and the variables of the best epoch so far."""

    state: TrainState
    best: dict | None


@dataclasses.dataclass
class Progress:
    """The metrics so far: a row for each finished epoch, and the infos of the current epoch's steps."""

    history: list[dict] = dataclasses.field(default_factory=list)
    infos: list[dict] = dataclasses.field(default_factory=list)


class Run:
    """A run's directory. Opening it checks that it is new, or belongs to this very run.

    As a context manager it waits for the checkpoints at the end. After an error in a job of several
    processes it does not wait: one of the others may be gone.

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

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        if error is None or num_processes() == 1:
            self.close()

    def resume(self, initial: Snapshot) -> tuple[Snapshot, Progress]:
        """The newest checkpoint's snapshot and progress; without checkpoint, the initial snapshot.

        Rows that were logged after that checkpoint are removed from `metrics.jsonl`.
        """
        restored = self._checkpoints.restore(initial)
        arrays, record = restored or (initial, {})
        snapshot, progress = arrays, Progress(**record)
        if is_first_process():
            lines = "".join(f"{_line(row)}\n" for row in progress.history)
            write_text(self.directory / "metrics.jsonl", lines)
            if self._summary_writer is not None:
                first_lost_step = int(snapshot.state.step) + 1 if restored else None
                curves = str(self.directory / "tensorboard")
                self._curves = self._summary_writer(curves, purge_step=first_lost_step)
        return snapshot, progress

    @property
    def newest_checkpoint(self) -> Path | None:
        """The path of the newest checkpoint."""
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

    def save(self, snapshot: Snapshot, step: int, progress: Progress) -> None:
        """Starts to save a checkpoint."""
        self._checkpoints.save(snapshot, step, dataclasses.asdict(progress))

    def close(self) -> None:
        """Waits until the checkpoints are on disk."""
        self._checkpoints.close()
        if self._curves is not None:
            self._curves.close()


def _open(directory: Path, identity: dict) -> None:
    path = directory / "run.json"
    if path.exists():
        check_same(path, identity)
        for unfinished_model in directory.glob(".model.*"):  # the run was killed while it wrote it
            shutil.rmtree(unfinished_model)
    elif directory.exists() and (not directory.is_dir() or _has_foreign_files(directory)):
        raise ValueError(
            f"{directory} exists and is not the directory of a run (there is no {path}): choose "
            "another directory, or remove what is there."
        )
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)


def _has_foreign_files(directory: Path) -> bool:
    """Whether the directory holds a file besides an unfinished `run.json` of a killed run."""
    return any(not path.name.startswith(".run.json.") for path in directory.iterdir())


def _line(row: dict) -> str:
    return json.dumps(row, allow_nan=False)


def identity(train: Cells, held_out: Cells | None, config: Config) -> dict:
    """A run's identity: config, genes, labels, studies, and digests of the cells."""
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
    """The row with None in place of NaN and infinity, which JSON does not have."""
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
    """The content of a file that holds an identity, which must equal the given one.

    Raises:
      ValueError: when the identities differ; the message says in what.
    """
    try:
        content = json.loads(path.read_text())
        before = _flat({key: content.get(key) for key in identity})
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
    return content


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
