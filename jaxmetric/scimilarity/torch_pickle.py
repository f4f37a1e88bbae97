"""The pickle in a torch file, as data: what describes tensors is read and written, nothing is executed.

Opcodes are interpreted on plain containers only, and a global is looked up in a table of names, never
imported. Source: `_rebuild_tensor_v2` in torch/_utils.py.
"""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": BFLOAT16,
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
    "torch ComplexFloatStorage": np.dtype("<c8"),
    "torch ComplexDoubleStorage": np.dtype("<c16"),
}
_MAX_DIMENSIONS = 64


class TorchFileError(ValueError):
    """The file is not a torch state dict that can be read safely; the message says why."""


def interpret(pickled: bytes, load_storage: Callable[[Any], np.ndarray]) -> Any:
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
                expect(list, stack[-1]).append(item)
            case "APPENDS":
                items, stack = stack, below.pop()
                expect(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                expect(dict, stack[-1]).update(_pairs([key, value]))
            case "SETITEMS":
                items, stack = stack, below.pop()
                expect(dict, stack[-1]).update(_pairs(items))
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
                stack.append(expect(FunctionType, function)(*expect(tuple, arguments)))
            case "BUILD":
                stack.pop()  # attributes of an OrderedDict: the module versions in _metadata
                expect(dict, stack[-1])
            case _:
                raise TorchFileError(
                    "expected the pickle opcodes that torch.save writes for a state dict "
                    f"(protocol 2), found {opcode.name}; do not unpickle it unless you trust it"
                )


def expect(kind: type, value: Any) -> Any:
    """The value; a TorchFileError unless it is of exactly this kind."""
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
    expect(np.ndarray, storage)
    if len(expect(tuple, size)) > _MAX_DIMENSIONS:
        raise TorchFileError(f"expected at most {_MAX_DIMENSIONS} dimensions, found {len(size)}")
    if any(expect(int, number) < 0 for number in (offset, *size, *stride)):
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
    **STORAGES,
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, _requires_grad, _backward_hooks: tensor,
}


def describe(arrays: Mapping[str, np.ndarray], under: str | None) -> bytes:
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
    storage_name = next(name for name, dtype in STORAGES.items() if dtype == array.dtype)
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
