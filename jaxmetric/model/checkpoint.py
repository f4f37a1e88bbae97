"""What is kept on disk: checkpoints of a run, and self-describing model directories. No pickle.

A model directory holds `model.json`, everything about the model but its arrays, with the size and
SHA-256 of every other file, and `variables/`, the arrays, written by Orbax. It is written beside its
place and renamed into it when whole.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.sharding import is_first_process, wait_for_all

log = logging.getLogger("jaxmetric")
MODEL_FORMAT = "jaxmetric model 1"
KEPT = 2  # newest checkpoints that a run keeps


class ModelFileError(ValueError):
    """A model directory that is incomplete, damaged, or not ours."""


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written."""


class Checkpoints:
    """The checkpoints of a run, by step: saved in the background, the newest whole one restored.

    Each holds a tree of arrays and a JSON record. Fingerprints of both are saved with them, so that
    damage is seen.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(KEPT), cleanup_tmp_directories=True
        )
        self.directory = directory
        with self._named_errors():
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, arrays, step: int, record: dict) -> None:
        """Starts to save what there is after a step; nothing where that step is saved already."""
        if step == self.newest:
            return
        marks = {"arrays": int(_fingerprint_of_arrays(arrays)), "record": _fingerprint_of(record)}
        with self._named_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    record=ocp.args.JsonSave({"record": record, "fingerprints": marks}),
                ),
            )

    def restore(self, like) -> tuple[Any, dict] | None:
        """The newest whole arrays, laid out like the given ones, and their record; None: there are none.

        Damaged checkpoints that are newer are named and moved to `damaged/`, beside the directory.

        Raises:
          ValueError: when there are checkpoints, and none can be restored; they are left where they are.
        """
        target, failed = jax.tree.map(ocp.utils.to_shape_dtype_struct, like), {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, target)
            except Exception as error:  # whatever orbax and tensorstore raise for damaged files
                failed[step] = " ".join(str(error).split())[:300]
                continue
            for bad, why in failed.items():
                self._set_aside(bad, why)
            with self._named_errors():
                for old in sorted(self._manager.all_steps())[:-KEPT]:  # killed while it made room
                    self._manager.delete(old)
            return found
        if failed:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be restored ({failed}): restore them "
                "from a copy, or choose another directory to start anew."
            )
        return None

    def _restore(self, step: int, target) -> tuple[Any, dict]:
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        record = found.record["record"]
        marks = {
            "arrays": int(_fingerprint_of_arrays(found.arrays)),
            "record": _fingerprint_of(record),
        }
        if marks != found.record["fingerprints"]:
            raise ValueError("its content is not what was saved")
        return found.arrays, record

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._named_errors():
            self._manager.wait_until_finished()
        self._manager.close()

    def _set_aside(self, step: int, why: str) -> None:
        damaged = self.directory.parent / "damaged" / f"{step}-{time.time_ns()}"
        log.warning(
            "%s is damaged and was moved to %s; going on from the one before: %s",
            self.directory / str(step),
            damaged,
            why,
        )
        if is_first_process():
            damaged.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(damaged)
        wait_for_all(f"checkpoint {step} set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of another process that is gone
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointWriteError(
                f"no checkpoint can be written to {self.directory} ("
                f"{' '.join(str(error).split())[:300]}). The checkpoints already there are whole: make "
                "room or make it writable, and give the same command again to go on from the newest."
            ) from error


@jax.jit
def _fingerprint_of_arrays(arrays) -> jax.Array:
    """32 bits that any flipped bit changes: the words, each times an odd number, summed."""

    def of_leaf(leaf):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        place = jnp.arange(words.size, dtype=jnp.uint32)
        return (words * (place * jnp.uint32(0x9E3779B2) + jnp.uint32(1))).sum(dtype=jnp.uint32)

    return of_leaf(jnp.stack([of_leaf(leaf) for leaf in jax.tree.leaves(arrays)]))


def _fingerprint_of(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


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
        with _checkpointer() as checkpointer:
            checkpointer.save(building / "variables", variables)
        files = {name: _fingerprint(building / name) for name in _files(building)}
        write_json(building / "model.json", {"format": MODEL_FORMAT, **meta, "files": files})


def _checkpointer() -> ocp.StandardCheckpointer:
    """One for this process by itself, also where there are several."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process {this}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


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
        with _checkpointer() as checkpointer:
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
