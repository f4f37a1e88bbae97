"""State dicts in torch's file format, read and written without torch.

A torch file is a zip archive of uncompressed members: `<folder>/data.pkl` describes the tensors and
`<folder>/data/<key>` holds the bytes of one storage. Source: `_save` and `_load` in
torch/serialization.py.
"""

import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, Literal

import numpy as np

from jaxmetric.scimilarity.torch_pickle import (
    BFLOAT16,
    STORAGES,
    TorchFileError,
    describe,
    expect,
    interpret,
)

# A byte of pickle can ask for 75 bytes of memory; 1 MiB describes some 6,000 tensors.
_MAX_PICKLE_BYTES = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    Warning,
)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict saved by `torch.save` (torch 1.6 or later).

    Nothing in the file is executed, and memory stays below 8 times the file's size + 80 MiB.

    Args:
        path: file that holds a dict of tensors, or a dict that has one under `"state_dict"`.

    Returns:
        The tensors by name, in the file's order. They are read-only, tensors that shared a storage
        share memory, and bfloat16 becomes float32.

    Raises:
        TorchFileError: if anything is wrong with the content of the file.
    """
    with Path(path).open("rb") as file:
        try:
            return _tensors(_read_root(file))
        except TorchFileError as error:
            raise TorchFileError(f"{path}: {error}") from error.__cause__
        except _DAMAGE as error:
            raise TorchFileError(
                f"{path}: expected a file as torch.save writes it, found damage "
                f"({error!r:.200}); fetch or save the file again"
            ) from error


def write_state_dict(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    under: str | None = None,
) -> None:
    """Writes tensors so that `torch.load` reads them back bit-equal as an OrderedDict.

    The same tensors give the same bytes. The file appears under `path` only when it is complete.

    Args:
        path: file to write or replace.
        tensors: arrays by name; floating, complex, signed integer, uint8 or bool.
        under: `"state_dict"` writes the dict `{"state_dict": tensors}`, as SCimilarity does.

    Raises:
        ValueError: if torch's format has no storage of an array's dtype.
    """
    path = Path(path)
    arrays = {name: _little_endian(name, np.asarray(array)) for name, array in tensors.items()}
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(partial, "x") as archive:
            for member, content in {
                "data.pkl": describe(arrays, under),
                "byteorder": b"little",
                "version": b"3\n",
            }.items():
                archive.writestr(zipfile.ZipInfo(f"archive/{member}"), content)
            for key, array in enumerate(arrays.values()):
                archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), array.tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tensors(root: Any) -> dict[str, np.ndarray]:
    if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
        root = root["state_dict"]
    if not isinstance(root, dict):
        raise TorchFileError(
            f"expected a dict of tensors, found a {type(root).__name__}; "
            "save the model's state_dict()"
        )
    for name, tensor in root.items():
        if not (isinstance(name, str) and isinstance(tensor, np.ndarray)):
            raise TorchFileError(
                f"expected a dict of named tensors, found a {type(tensor).__name__} under "
                f"{name!r:.80}; save the model's state_dict() alone or under 'state_dict'"
            )
    return root


def _read_root(file: BinaryIO) -> Any:
    """Returns the object that the archive's pickle describes, every tensor an array."""
    if (head := file.read(4)) != b"PK\x03\x04":
        raise TorchFileError(
            f"expected the zip format of torch 1.6 or later, found a file that starts with "
            f"{head!r}; if torch wrote it in its older format, save it again with "
            "torch.save(torch.load(path, weights_only=True), path)"
        )
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, os.fstat(file.fileno()).st_size)
        folder = _folder(members)
        pickled = members[f"{folder}/data.pkl"]
        if pickled.file_size > _MAX_PICKLE_BYTES:
            raise TorchFileError(
                f"expected a data.pkl of at most {_MAX_PICKLE_BYTES} bytes, found "
                f"{pickled.file_size}; save fewer tensors in one file"
            )
        marker = members.get(f"{folder}/byteorder")
        byteorder = _byteorder(archive.read(marker) if marker else b"little")
        loaded: dict[str, tuple[tuple[np.dtype, int], np.ndarray]] = {}

        def load_storage(identity: Any) -> np.ndarray:
            kind, dtype, key, _, count = identity
            if kind != "storage" or not isinstance(dtype, np.dtype):
                raise TorchFileError("expected the identity of a storage, found another object")
            if expect(str, key) not in loaded:
                content = archive.read(members[f"{folder}/data/{key}"])
                loaded[key] = (dtype, count), _storage(content, dtype, count, byteorder)
            declared, storage = loaded[key]
            if declared != (dtype, count):
                raise TorchFileError(
                    f"expected one type and size for storage {key!r:.80}, found two; "
                    "fetch or save the file again"
                )
            return storage

        return interpret(archive.read(pickled), load_storage)


def _members(archive: zipfile.ZipFile, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Returns the archive's members by name, once none of them can surprise."""
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise TorchFileError("expected distinct member names, found duplicates; do not trust it")
    for name, info in members.items():
        inside = PureWindowsPath(name)
        if inside.anchor or ".." in inside.parts:
            raise TorchFileError(
                f"expected member names inside the archive, found {name!r:.80}; do not trust it"
            )
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise TorchFileError(
                f"expected uncompressed members, as torch writes them, found {name!r:.80} "
                "compressed; save it again with torch"
            )
    if (total := sum(info.file_size for info in infos)) > file_bytes:
        raise TorchFileError(
            f"expected members that fit the file's {file_bytes} bytes, found {total} bytes "
            "declared; fetch or save the file again"
        )
    for info in infos:
        archive.open(info).close()  # raises if the local header names another member
    return members


def _folder(members: Mapping[str, object]) -> str:
    folders = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise TorchFileError(
            f"expected one <folder>/data.pkl, found {len(folders)}; is it a file that torch.save "
            "wrote?"
        )
    return folders[0]


def _byteorder(marker: bytes) -> Literal["<", ">"]:
    if marker not in (b"little", b"big"):
        raise TorchFileError(f"expected byteorder 'little' or 'big', found {marker!r:.80}")
    return "<" if marker == b"little" else ">"


def _storage(
    content: bytes, dtype: np.dtype, count: Any, byteorder: Literal["<", ">"]
) -> np.ndarray:
    """Returns a storage's `count` elements, in native byte order and read-only."""
    if expect(int, count) * dtype.itemsize != len(content):
        raise TorchFileError(
            f"expected a storage of {count} elements of {dtype.itemsize} bytes, found "
            f"{len(content)} bytes; fetch or save the file again"
        )
    stored = np.frombuffer(content, dtype.newbyteorder(byteorder))
    if dtype == BFLOAT16:
        array = (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    else:
        array = stored.astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _little_endian(name: str, array: np.ndarray) -> np.ndarray:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in STORAGES.values():
        raise ValueError(
            "expected float16/32/64, complex64/128, int8/16/32/64, uint8 or bool, "
            f"found {array.dtype} for {name!r}; convert it first"
        )
    return little
