"""Self-describing model directories. No pickle.

A model directory holds `model.json`, all of the model but its arrays, with the size and SHA-256 of
every other file, and `variables/`, the arrays, written by Orbax. It is written beside its place and
renamed into it when whole.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from jaxmetric.config import Config
from jaxmetric.files import whole_directory, write_json

if TYPE_CHECKING:
    from jaxmetric.model.metric_learning import MetricLearning

MODEL_FORMAT = "jaxmetric model 1"
PACKAGES = ("jaxmetric", "jax", "flax", "optax", "orbax-checkpoint")


class ModelFileError(ValueError):
    """A model directory that is incomplete, damaged, or not ours."""


def metadata_of(model: "MetricLearning") -> dict[str, Any]:
    """The fields of a model but its arrays, as `model.json` has them; `fields_of` is the inverse."""
    history = model.history.astype(object).where(model.history.notna(), None)
    return {
        "config": model.config.to_dict(),
        "genes": list(model.genes),
        "labels": list(model.labels),
        "label_ids": model.label_ids and list(model.label_ids),
        "ontology_version": model.ontology_version,
        "networks": sorted(model.variables["params"]),
        "trained_on": model.trained_on,
        "history": history.to_dict("records"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def fields_of(meta: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model but its arrays, from the content of `model.json`."""
    return {
        "config": Config.from_dict(meta["config"]),
        "genes": tuple(meta["genes"]),
        "labels": tuple(meta["labels"]),
        "label_ids": meta["label_ids"] and tuple(meta["label_ids"]),
        "ontology_version": meta["ontology_version"],
        "trained_on": meta["trained_on"],
        "history": pd.DataFrame(meta["history"]),
    }


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
    """A checkpointer of this process alone, which does not wait for the others of a job."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process {this}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


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
    """The content of `model.json`: all of a model but its arrays."""
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


def digest(variables: dict) -> str:
    """A SHA-256 of a model's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        sha.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
