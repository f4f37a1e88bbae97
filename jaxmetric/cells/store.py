"""The format of a training store: an AnnData in sharded zarr v3, with checksums of all of it."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import tensorstore as ts
import zarr

FORMAT = "jaxmetric store 1"
CHUNK = 2**16  # values that are compressed together, and read together
SHARD = 2**23  # values in a file


@functools.lru_cache(maxsize=8)
def open_values(store: Path, fingerprint: str) -> tuple[ts.TensorStore, ts.TensorStore]:
    """The arrays of all columns and all values of the store, which has this fingerprint."""
    opened = [
        ts.open(
            {"driver": "zarr3", "kvstore": _file(store / "X" / name)}, open=True, context=_context()
        )
        for name in ("indices", "data")
    ]
    return opened[0].result(), opened[1].result()


def create_values(store: Path, name: str, kind: type, length: int) -> ts.TensorStore:
    """An array of a store's matrix, new or there already; reading verifies each chunk's checksum."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {
        "cname": "lz4",
        "clevel": 3,
        "shuffle": "shuffle",
        "typesize": np.dtype(kind).itemsize,
        "blocksize": 0,
    }
    inner = [little, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [CHUNK],
        "codecs": inner,
        "index_codecs": [little, {"name": "crc32c"}],
    }
    metadata = {
        "shape": [length],
        "data_type": np.dtype(kind).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {"encoding-type": "array", "encoding-version": "0.2.0"},
    }
    spec = {"driver": "zarr3", "kvstore": _file(store / "X" / name), "metadata": metadata}
    return ts.open(spec, create=True, open=True, context=_context()).result()


def require_zarr_3(what: str) -> None:
    """Raises a ValueError where an older zarr is installed."""
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise ValueError(
            f"{what} needs zarr 3, but version {zarr.__version__} is installed: pip install 'zarr>=3' "
            "(scimilarity, which needs zarr 2, goes into another environment)."
        )


def about(path: Path) -> dict | None:
    """What a store says of itself; None: the folder is no store."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return None
    return attributes.get("jaxmetric")


def check(store: Path) -> None:
    """Raises a ValueError unless the files of a store, but X's values, are as they were written."""
    listed, found = (about(store) or {}).get("checksums", {}), digests(store)
    if wrong := sorted(name for name in listed if found.get(name) != listed[name]):
        raise ValueError(
            f"{store / wrong[0]} is missing or was changed: it has not the checksum that it was written "
            "with. Prepare the store again, or restore it from a copy."
        )


def digests(store: Path) -> dict[str, str]:
    """The SHA-256 of each of a store's files, but of X's values and of embeddings added later."""
    found = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        left_out = name.startswith(("X/indices/c/", "X/data/c/", "obsm/")) or name == "zarr.json"
        if path.is_file() and not left_out:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _file(path: Path) -> dict:
    return {"driver": "file", "path": str(path)}


@functools.lru_cache(maxsize=1)
def _context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}})
