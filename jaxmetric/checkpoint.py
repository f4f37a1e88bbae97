"""What is kept on disk: checkpoints of a run, and self-describing model directories. No pickle.

A model directory holds `model.json`, everything about the model but its arrays, with the size and
SHA-256 of every other file, and `variables/`, the arrays, written by Orbax. It is written beside its
place and renamed into it when whole.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.train import TrainState

MODEL_FORMAT = "jaxmetric model 1"
KEPT = 2  # newest checkpoints that a run keeps


class ModelFileError(ValueError):
    """A model directory that is incomplete, damaged, or not ours."""


class Checkpoints:
    """The checkpoints of a run: saved in the background, the newest restored."""

    def __init__(self, directory: Path) -> None:
        policy = preservation_policy.LatestN(KEPT)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, state: TrainState, epoch: int) -> None:
        """Starts to save the state at the end of an epoch."""
        self._manager.save(epoch, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def restore(self, like: TrainState) -> tuple[TrainState, int]:
        """The newest state, laid out like the given one, and its epoch; `like` and 0 if there is none."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return like, 0
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            epoch, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        return restored.state, epoch

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with _whole(path) as partial:
        partial.write_text(text)


def write_h5ad(adata: anndata.AnnData, path: Path) -> None:
    """Writes an h5ad file whole or not at all."""
    with _whole(path) as partial:
        adata.write_h5ad(partial)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside the given one; what is written there takes the given place once it is done."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_model(directory: Path, variables: dict, meta: dict, overwrite: bool = False) -> None:
    """Writes a model directory whole or not at all.

    Raises:
      ValueError: when the directory exists; with `overwrite`, when it holds something else than a
        model.
    """
    if directory.exists():
        if not overwrite:
            raise ValueError(
                f"{directory} exists: choose another directory, or say overwrite=True."
            )
        if not (directory / "model.json").exists():
            raise ValueError(f"{directory} exists and is no model directory: it is left as it is.")
    with whole_directory(directory) as building:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(building / "variables", variables)
        files = {name: _fingerprint(building / name) for name in _files(building)}
        write_json(building / "model.json", {"format": MODEL_FORMAT, **meta, "files": files})


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A new folder beside the given place; once it is done it takes that place and what was there."""
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=directory.absolute().parent, prefix=f".{directory.name}."))
    try:
        yield building
        building.chmod(0o755)
        if directory.exists():
            replaced = Path(f"{building}.replaced")
            directory.rename(replaced)
            building.rename(directory)
            shutil.rmtree(replaced)
        else:
            building.rename(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_model(directory: Path, shapes: Callable[[dict], dict]) -> tuple[dict, dict]:
    """The variables and the meta data of a model directory.

    Args:
      directory: the model directory.
      shapes: gives the shapes and types of the variables that the meta data call for.

    Raises:
      ModelFileError: when a file is missing, truncated, changed or foreign; the message names it.
    """
    meta = read_meta(directory)
    listed, present = meta.pop("files"), _files(directory)
    for what, names in (
        ("is missing", listed.keys() - present),
        ("does not belong to the model", present - listed.keys() - {"model.json"}),
        (
            "is truncated or was changed",
            {n for n in listed.keys() & present if _fingerprint(directory / n) != listed[n]},
        ),
    ):
        if names:
            raise ModelFileError(
                f"{directory / min(names)} {what}: restore the model directory from a copy, or save "
                "the model again."
            )
    try:
        expected = shapes(meta)
        with ocp.StandardCheckpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", expected)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{directory}: model.json and the arrays in variables disagree: {error}"
        ) from error
    return variables, meta


def read_meta(directory: Path) -> dict:
    """All about a model but its arrays: the content of `model.json`."""
    path = directory / "model.json"
    if (directory / "encoder.ckpt").exists():
        raise ModelFileError(
            f"{directory} is a SCimilarity model directory: turn it into ours with `jaxmetric import` "
            "or `jaxmetric.load_scimilarity`."
        )
    if not path.is_file():
        raise ModelFileError(
            f"{directory} is no model directory: there is no {path}. Expected what `model.save` or "
            "`jaxmetric train` wrote."
        )
    try:
        meta = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} is truncated or was changed: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != MODEL_FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ModelFileError(f"{path} must be of format {MODEL_FORMAT!r}, but is of {found!r}.")
    if not isinstance(meta.get("files"), dict):
        raise ModelFileError(f"{path} has no list of the model's files.")
    return meta


def _files(directory: Path) -> set[str]:
    """Files below the directory by relative name, hidden ones left out."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix() for path in paths}
    return {name for name in names if not Path(name).name.startswith(".")}


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
