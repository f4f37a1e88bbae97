"""State dicts in torch's file format, read and written without torch.

A torch file is a zip archive of uncompressed members: `<folder>/data.pkl` describes the tensors and
`<folder>/data/<key>` holds the bytes of one storage. The pickle is data here, never a program: its
opcodes are interpreted below, only on plain containers, and a global is looked up in a table of
names, never imported. Source: `_save` and `_load` in torch/serialization.py.
"""

import math
import os
import pickle
import pickletools
import struct
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from types import FunctionType
from typing import Any, BinaryIO, Literal

import numpy as np

_BFLOAT16 = np.dtype([("bfloat16", "<u2")])
_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": _BFLOAT16,
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
    "torch ComplexFloatStorage": np.dtype("<c8"),
    "torch ComplexDoubleStorage": np.dtype("<c16"),
}
# A byte of pickle can ask for 75 bytes of memory; 1 MiB describes some 6,000 tensors.
_MAX_PICKLE_BYTES = 1 << 20
_MAX_DIMENSIONS = 64
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


class TorchFileError(ValueError):
    """The file is not a torch state dict that can be read safely; the message says why."""


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
                "data.pkl": _pickled(arrays, under),
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
            if _expect(str, key) not in loaded:
                content = archive.read(members[f"{folder}/data/{key}"])
                loaded[key] = (dtype, count), _storage(content, dtype, count, byteorder)
            declared, storage = loaded[key]
            if declared != (dtype, count):
                raise TorchFileError(
                    f"expected one type and size for storage {key!r:.80}, found two; "
                    "fetch or save the file again"
                )
            return storage

        return _interpret(archive.read(pickled), load_storage)


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
    if _expect(int, count) * dtype.itemsize != len(content):
        raise TorchFileError(
            f"expected a storage of {count} elements of {dtype.itemsize} bytes, found "
            f"{len(content)} bytes; fetch or save the file again"
        )
    stored = np.frombuffer(content, dtype.newbyteorder(byteorder))
    if dtype == _BFLOAT16:
        array = (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    else:
        array = stored.astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _interpret(pickled: bytes, load_storage: Callable[[Any], np.ndarray]) -> Any:
    """Returns the object that a pickle of protocol 2 describes, without executing it.

    Only plain values, tuples, lists and dicts are built; the known globals are applied to checked
    arguments, and every other opcode is refused. Objects nest on an explicit stack: no recursion.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "LONG1" if -(2**63) <= argument < 2**63:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                _expect(list, stack[-1]).append(item)
            case "APPENDS":
                items, stack = stack, below.pop()
                _expect(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(dict, stack[-1]).update(_pairs([key, value]))
            case "SETITEMS":
                items, stack = stack, below.pop()
                _expect(dict, stack[-1]).update(_pairs(items))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(argument))
            case "BINPERSID":
                stack.append(load_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_expect(FunctionType, function)(*_expect(tuple, arguments)))
            case "BUILD":
                stack.pop()  # attributes of an OrderedDict: the module versions in _metadata
                _expect(dict, stack[-1])
            case _:
                raise TorchFileError(
                    "expected the pickle opcodes that torch.save writes for a state dict "
                    f"(protocol 2), found {opcode.name}; do not unpickle it unless you trust it"
                )


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TorchFileError(
            f"expected a {kind.__name__}, found a {type(value).__name__}; do not trust this file"
        )
    return value


def _pairs(items: list[Any]) -> dict[str | int, Any]:
    """Returns alternating keys and values as a dict; hashing any other key could recurse."""
    if not {type(key) for key in items[::2]} <= {str, int}:
        raise TorchFileError("expected str or int keys, found another type; do not trust this file")
    return dict(zip(items[::2], items[1::2], strict=True))


def _global(name: Any) -> Any:
    if name not in _GLOBALS:
        raise TorchFileError(
            f"expected only tensors and plain containers, found {name!r:.80}; it is neither "
            "imported nor called; save the model's state_dict() alone"
        )
    return _GLOBALS[name]


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _requires_grad: Any,
    _backward_hooks: Any,
    _metadata: Any = None,
) -> np.ndarray:
    """Returns a view of a storage; offset, size and stride count elements."""
    _expect(np.ndarray, storage)
    if len(_expect(tuple, size)) > _MAX_DIMENSIONS:
        raise TorchFileError(f"expected at most {_MAX_DIMENSIONS} dimensions, found {len(size)}")
    if any(_expect(int, number) < 0 for number in (offset, *size, *stride)):
        raise TorchFileError("expected sizes, strides and an offset >= 0, found a negative number")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count > storage.size or (count and last >= storage.size):
        raise TorchFileError(
            f"expected a tensor inside its storage of {storage.size} elements, found one of shape "
            f"{size!r:.80} that reaches element {last}; do not trust this file"
        )
    bytes_per = storage.itemsize
    return np.ndarray(
        size, storage.dtype, storage, offset * bytes_per, [step * bytes_per for step in stride]
    )


_GLOBALS: dict[str, Any] = {
    **_STORAGES,
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, _requires_grad, _backward_hooks: tensor,
}


def _little_endian(name: str, array: np.ndarray) -> np.ndarray:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _STORAGES.values():
        raise ValueError(
            "expected float16/32/64, complex64/128, int8/16/32/64, uint8 or bool, "
            f"found {array.dtype} for {name!r}; convert it first"
        )
    return little


def _pickled(arrays: Mapping[str, np.ndarray], under: str | None) -> bytes:
    """Returns the pickle of an OrderedDict whose tensors view the storages "0", "1", ..."""
    items = [
        _text(name) + _tensor_opcodes(str(key), array)
        for key, (name, array) in enumerate(arrays.items())
    ]
    state = _ORDERED_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
    if under is not None:
        state = pickle.EMPTY_DICT + _text(under) + state + pickle.SETITEM
    return pickle.PROTO + b"\2" + state + pickle.STOP


def _tensor_opcodes(key: str, array: np.ndarray) -> bytes:
    storage_name = next(name for name, dtype in _STORAGES.items() if dtype == array.dtype)
    identity = _tuple(
        _text("storage"),
        _named(storage_name),
        _text(key),
        _text("cpu"),
        _number(array.size),
    )
    stride = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    arguments = _tuple(
        identity + pickle.BINPERSID,
        _number(0),
        _tuple(*map(_number, array.shape)),
        _tuple(*map(_number, stride)),
        pickle.NEWFALSE,
        _ORDERED_DICT,
    )
    return _named("torch._utils _rebuild_tensor_v2") + arguments + pickle.REDUCE


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _tuple(*opcodes: bytes) -> bytes:
    return pickle.MARK + b"".join(opcodes) + pickle.TUPLE


def _named(name: str) -> bytes:
    return pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n"


_ORDERED_DICT = _named("collections OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
