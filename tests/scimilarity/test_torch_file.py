"""Torch files: what is read, what is written, and what is refused."""

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from conftest import DATA
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import traced

from jaxmetric.scimilarity.torch_file import TorchFileError, read_state_dict, write_state_dict

REFERENCE = DATA / "reference_model"
NATIVE_DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "c8", "c16"]
FOUR_FLOATS = np.arange(4, dtype="<f4").tobytes()
DICT_OF = b"\x80\x02}X\x01\0\0\0w%ss."


def opcodes(value) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor_opcodes(
    *, key: object = "0", storage="FloatStorage", count=4, offset=0, size=(4,), stride=(1,)
) -> bytes:
    """What torch writes for one tensor; the defaults are four floats in storage 0."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n%s\n" % storage.encode()
        + b"%s%s%stQ" % (opcodes(key), opcodes("cpu"), opcodes(count))
        + b"%s%s%s" % (opcodes(offset), opcodes(size), opcodes(stride))
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def save(path: Path, pickled: bytes, *storages: bytes, folder="archive", **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{folder}/data.pkl"), pickled)
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)
        for key, content in enumerate(storages):
            archive.writestr(zipfile.ZipInfo(f"{folder}/data/{key}"), content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def assert_same(actual, expected):
    """The same names in the same order, dtypes, shapes and bits."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].shape == tensor.shape
        assert actual[name].tobytes() == tensor.tobytes()


# Reading


def test_reference_model_has_the_declared_shapes():
    encoder = read_state_dict(REFERENCE / "encoder.ckpt")
    declared = json.loads((REFERENCE / "layer_sizes.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in encoder.items()} == declared
    decoder = read_state_dict(REFERENCE / "decoder.ckpt")
    assert decoder["network.0.0.weight"].shape == encoder["network.2.weight"].shape[::-1]
    for tensor in (*encoder.values(), *decoder.values()):
        assert np.isfinite(tensor).all()
        assert not tensor.flags.writeable


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ({"size": (2, 2), "stride": (1, 2)}, [[0, 2], [1, 3]]),
        ({"size": (2,), "stride": (2,), "offset": 1}, [1, 3]),
        ({"size": (), "stride": (), "offset": 3}, 3),
        ({"size": (0, 2**40), "stride": (1, 1)}, np.zeros((0, 2**40))),
        ({"size": (1,), "stride": (2**40,)}, [0]),
        ({"size": (3, 1), "stride": (0, 1)}, [[0], [0], [0]]),
    ],
)
def test_views_of_a_storage(path, view, expected):
    save(path, DICT_OF % tensor_opcodes(**view), FOUR_FLOATS)
    np.testing.assert_array_equal(read_state_dict(path)["w"], np.asarray(expected, "f4"))


def test_tensors_that_share_a_storage_share_memory(path):
    second = opcodes("v") + tensor_opcodes(offset=2, size=(2,)) + b"s"
    save(path, DICT_OF.replace(b".", second + b".") % tensor_opcodes(), FOUR_FLOATS)
    tensors = read_state_dict(path)
    assert np.shares_memory(tensors["w"], tensors["v"])
    np.testing.assert_array_equal(tensors["v"], [2, 3])


@pytest.mark.parametrize(("marker", "order"), [(b"little", "<"), (b"big", ">")])
def test_byte_order(path, marker, order):
    pickled = DICT_OF % tensor_opcodes()
    save(path, pickled, np.arange(4, dtype=f"{order}f4").tobytes(), byteorder=marker)
    tensors = read_state_dict(path)
    assert_same(tensors, {"w": np.arange(4, dtype=np.float32)})
    assert not tensors["w"].flags.writeable


@pytest.mark.parametrize(("marker", "order"), [(b"little", "<"), (b"big", ">")])
def test_bfloat16_becomes_float32(path, marker, order):
    pickled = DICT_OF % tensor_opcodes(storage="BFloat16Storage")
    stored = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], f"{order}u2").tobytes()
    save(path, pickled, stored, byteorder=marker)
    expected = np.array([1, -2, np.inf, 2.0**-133], np.float32)
    assert_same(read_state_dict(path), {"w": expected})


@pytest.mark.parametrize("folder", ["archive", "epoch=3:step 2", "модель"])
def test_any_folder_name_and_extra_members(path, folder):
    members = {".data/serialization_id": b"1", ".format_version": b"1", "version": b"3\n"}
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS, folder=folder, **members)
    np.testing.assert_array_equal(read_state_dict(path)["w"], [0, 1, 2, 3])


def test_parameter_and_ordered_dict_attributes(path):
    parameter = b"ctorch._utils\n_rebuild_parameter\n(%s\x88ccollections\nOrderedDict\n)RtR"
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R(%s%su%sb." % (
        opcodes("w"),
        parameter % tensor_opcodes(),
        opcodes({"_metadata": {"": {"version": 1}}}),
    )
    np.testing.assert_array_equal(read_state_dict(save(path, pickled, FOUR_FLOATS))["w"], range(4))


def test_checkpoint_with_other_plain_entries(path):
    other = {"epoch": 3, "lr": 0.5, "name": "é", "flags": [True, None, (), [1]], "state": {0: (1,)}}
    state = b"X\x0a\0\0\0state_dict}X\x01\0\0\0w%ss" % tensor_opcodes()
    save(path, b"\x80\x02" + opcodes(other) + state + b"s.", FOUR_FLOATS)
    np.testing.assert_array_equal(read_state_dict(path)["w"], range(4))


def test_a_missing_file_is_not_a_torch_file_error(path):
    with pytest.raises(FileNotFoundError):
        read_state_dict(path)


# Writing


@example(tensors={"\ud800": np.zeros(2)}, under=None)
@settings(deadline=None, max_examples=100)
@given(
    tensors=st.dictionaries(
        st.text(),
        st.sampled_from(NATIVE_DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4))
        ),
        max_size=4,
    ),
    under=st.sampled_from([None, "state_dict"]),
)
def test_round_trip(tmp_path_factory, tensors, under):
    directory = tmp_path_factory.mktemp("round_trip")
    write_state_dict(directory / "a", tensors, under=under)
    read = read_state_dict(directory / "a")
    assert_same(read, tensors)
    write_state_dict(directory / "b", read, under=under)
    assert (directory / "a").read_bytes() == (directory / "b").read_bytes()
    assert sorted(file.name for file in directory.iterdir()) == ["a", "b"]


def test_members_carry_no_date(path):
    write_state_dict(path, {"w": np.zeros(3)})
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_readers_of_the_old_file_keep_it(path):
    path.write_bytes(b"old")
    with path.open("rb") as old:
        write_state_dict(path, {"w": np.zeros(3)})
        assert old.read() == b"old"


def test_layout_of_the_input_does_not_matter(path):
    matrix = np.arange(6, dtype=">f4").reshape(2, 3).T
    write_state_dict(path, {"w": matrix})
    assert_same(read_state_dict(path), {"w": np.ascontiguousarray(matrix, np.float32)})


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1], "u4"), np.array([None])])
def test_unknown_dtype_is_refused_and_the_old_file_stays(path, array):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"expected float16.*found .* for 'w'"):
        write_state_dict(path, {"w": array})
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file_alone(path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path.write_bytes(b"old")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_state_dict(path, {"w": np.zeros(3)})
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


# Hostile pickles


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("payload", ["call", "inside a state dict", "inst", "build"])
def test_no_call_is_made(path, protocol, payload):
    marker = path.with_name("executed")
    evil = Calls(os.mkdir, str(marker))
    inst = f"(V{marker}\ni{os.mkdir.__module__}\nmkdir\n.".encode()
    pickled = {
        "call": pickle.dumps(evil, protocol),
        "inside a state dict": pickle.dumps({"state_dict": {"w": evil}}, protocol),
        "inst": inst,
        "build": pickle.dumps(Calls(dict), protocol)[:-1] + inst[:-1] + b"b.",
    }[payload]
    save(path, pickled)
    with pytest.raises(TorchFileError, match=rf"{path.name}: expected .* found"):
        read_state_dict(path)
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()  # the payload works where a pickle is executed


LAUGHS = b"(]q\0" + b"](h\0h\0eq\0" * 64 + b"t"
TUPLE_LAUGHS = b")" + b"q\0h\0\x86" * 64


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x02}", id="no stop"),
        pytest.param(b"\x80\x02.", id="nothing on the stack"),
        pytest.param(b"\x80\x02u.", id="no mark"),
        pytest.param(b"\x80\x02\x86.", id="too few for a tuple"),
        pytest.param(b"\x80\x02h\x07.", id="unknown memo"),
        pytest.param(b"\x80\x02(K\x01K\x02K\x03}(K\x01u.", id="odd items"),
        pytest.param(b"\x80\x02].", id="list"),
        pytest.param(b"\x80\x02}K\x01K\x02s.", id="no tensors"),
        pytest.param(DICT_OF % b"K\x01", id="number under a name"),
        pytest.param(b"\x80\x02}K\x01%ss." % tensor_opcodes(), id="tensor under a number"),
        pytest.param(b"}%sK\x01s." % opcodes("a" * 10_000), id="long name"),
        pytest.param(b"\x80\x02}N%ss." % tensor_opcodes(), id="tensor under None"),
        pytest.param(b"\x8c\x08builtins\x8c\x04eval\x93.", id="stack global"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n)\x81.", id="newobj"),
        pytest.param(b"(ccollections\nOrderedDict\no.", id="obj"),
        pytest.param(b"\x82\x01.", id="extension registry"),
        pytest.param(b"P0\n.", id="text persistent id"),
        pytest.param(DICT_OF % b"X\x01\0\0\0aQ", id="odd persistent id"),
        pytest.param(DICT_OF % b"(K\x01K\x02K\x03K\x04K\x05tQ", id="no storage type"),
        pytest.param(DICT_OF % b"ctorch\nFloatStorage\n", id="storage type as tensor"),
        pytest.param(DICT_OF % b"ctorch._utils\n_rebuild_tensor_v2\n)R", id="no arguments"),
        pytest.param(
            DICT_OF % b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR", id="no storage"
        ),
        pytest.param(DICT_OF % b"ccollections\nOrderedDict\n(]tR", id="filled OrderedDict"),
        pytest.param(DICT_OF % tensor_opcodes(key=0), id="storage key is a number"),
        pytest.param(DICT_OF % tensor_opcodes(key="1"), id="no such storage"),
        pytest.param(DICT_OF % tensor_opcodes(key="../data.pkl"), id="storage key with a path"),
        pytest.param(b"}" + b"]" * 20_000 + b"a" * 19_999 + b".", id="deep lists"),
        pytest.param(b"})" + b"\x85" * 20_000 + b"K\x01s.", id="deep tuple as key"),
        pytest.param(DICT_OF % LAUGHS, id="list laughs"),
        pytest.param(DICT_OF % TUPLE_LAUGHS, id="tuple laughs"),
        pytest.param(b"}" + TUPLE_LAUGHS + b"K\x01s.", id="tuple laughs as key"),
        pytest.param(
            DICT_OF % tensor_opcodes().replace(b"K\4t", TUPLE_LAUGHS + b"t"), id="as count"
        ),
        pytest.param(b"]q\0h\0a.", id="list in itself"),
        pytest.param(b"\x80\x02X\xff\xff\xff\xffa.", id="text longer than the pickle"),
        pytest.param(b"\x8d" + b"\xff" * 7 + b"\x7fa.", id="text of 2**63 bytes"),
        pytest.param(b"\x96" + b"\0" * 6 + b"\1\0a.", id="bytearray of 2**48 bytes"),
        pytest.param(b"\x8b\xff\xff\xff\x7fa.", id="number of 2**31 bytes"),
        pytest.param(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.", id="frame of 2**63 bytes"),
        pytest.param(b"I" + b"9" * 100_000 + b"\n.", id="decimal number"),
        pytest.param(b"S'\\d'\n.", id="invalid escape"),
        pytest.param(b"\x80\x02X\x01\0\0\0\xff.", id="invalid utf-8"),
        pytest.param(b"c\xff\n\xff\n.", id="global that is not ascii"),
    ],
)
def test_hostile_pickles(path, pickled):
    save(path, pickled, FOUR_FLOATS)
    with traced() as peak:
        with pytest.raises(TorchFileError, match=rf"{path.name}: expected .* found") as caught:
            read_state_dict(path)
        assert peak() < 100 * len(pickled) + 200_000
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("pickled", "found"),
    [
        (b"cbuiltins\neval\n.", "'builtins eval'"),
        (b"ctorch\nload\n.", "'torch load'"),
        (b"ctorch._utils\n_rebuild_tensor_v2.x\n.", "'torch._utils _rebuild_tensor_v2.x'"),
        (b"ctorch.storage\n_load_from_bytes\n(tR.", "'torch.storage _load_from_bytes'"),
        (DICT_OF % b"X\x01\0\0\0a)R", "expected a function, found a str"),
        (DICT_OF % b"ctorch\nFloatStorage\n)R", "expected a function, found a .*DType"),
        (DICT_OF % b"ctorch._utils\n_rebuild_tensor_v2\n}R", "expected a tuple, found a dict"),
        (DICT_OF % b"]}b", "expected a dict, found a list"),
        (DICT_OF % b"}K\x01a", "expected a list, found a dict"),
        (DICT_OF % (b"\x8a\xff" + b"\x7f" * 255), "LONG1"),
    ],
)
def test_what_was_found_is_named(path, pickled, found):
    with pytest.raises(TorchFileError, match=found):
        read_state_dict(save(path, pickled))


def test_a_memo_index_allocates_nothing(path):
    save(path, DICT_OF.replace(b"}", b"}r\xff\xff\xff\xff") % tensor_opcodes(), FOUR_FLOATS)
    with traced() as peak:
        np.testing.assert_array_equal(read_state_dict(path)["w"], range(4))
        assert peak() < 1_000_000


@pytest.mark.parametrize("storage", ["FloatStorage", "BFloat16Storage"])
def test_many_views_of_one_storage_cost_no_copies(path, storage):
    content = bytes(1_000_000)
    count = len(content) // (4 if storage == "FloatStorage" else 2)
    one = tensor_opcodes(storage=storage, count=count, size=(count,))
    pickled = b"}(" + b"".join(opcodes(str(i)) + one for i in range(200)) + b"u."
    save(path, pickled, content)
    with traced() as peak:
        assert len(read_state_dict(path)) == 200
        assert peak() < 8 * len(content)


@pytest.mark.parametrize(
    "tensor",
    [
        {"count": 5},
        {"count": 3},
        {"count": -4},
        {"count": "4"},
        {"count": 2**62},
        {"storage": "DoubleStorage"},
        {"storage": "QInt8Storage"},
        {"offset": 1},
        {"offset": -1},
        {"offset": 0.0},
        {"offset": 2**62},
        {"size": (5,)},
        {"size": (-1,)},
        {"size": (2**40,), "stride": (0,)},
        {"size": (5,), "stride": (0,)},
        {"size": (2**62, 4), "stride": (0, 0)},
        {"size": (2,), "stride": (4,)},
        {"size": (2,), "stride": (2**62,)},
        {"size": (4,), "stride": (-1,), "offset": 3},
        {"size": [4], "stride": [1]},
        {"size": 4, "stride": 1},
        {"size": ("4",), "stride": (1,)},
        {"size": (True,), "stride": (1,)},
        {"size": (1,) * 65, "stride": (1,) * 65},
        {"size": (1,) * 100_000, "stride": (1,) * 100_000},
    ],
)
def test_tensors_that_do_not_fit_their_storage(path, tensor):
    save(path, DICT_OF % tensor_opcodes(**tensor), FOUR_FLOATS)
    with pytest.raises(TorchFileError, match=rf"{path.name}: expected .* found (?!damage)"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"size": (2, 2), "stride": (1,)},
        {"size": (1,), "stride": (2**62,)},
        {"size": (0,), "stride": (1,), "offset": 5},
        {"size": (0,), "stride": (1,), "offset": 2**62},
        {"size": (0, 2**62, 2**62), "stride": (1, 1, 1)},
    ],
)
def test_tensors_that_numpy_cannot_describe(path, tensor):
    save(path, DICT_OF % tensor_opcodes(**tensor), FOUR_FLOATS)
    with pytest.raises(TorchFileError, match="found damage"):
        read_state_dict(path)


def test_a_storage_has_one_type(path):
    second = opcodes("v") + tensor_opcodes(storage="IntStorage") + b"s"
    save(path, DICT_OF.replace(b".", second + b".") % tensor_opcodes(), FOUR_FLOATS)
    with pytest.raises(TorchFileError, match="one type and size for storage '0', found two"):
        read_state_dict(path)


# Hostile archives


def patch_last_sizes(path: Path, compressed: int, uncompressed: int) -> None:
    """Overwrites the sizes that the archive's directory declares for its last member."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", compressed, uncompressed)
    path.write_bytes(content)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bomb(path, method):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", DICT_OF % tensor_opcodes(count=10**7, size=(10**7,)))
        archive.writestr("archive/data/0", bytes(4 * 10**7))
    with traced() as peak:
        with pytest.raises(TorchFileError, match="uncompressed members"):
            read_state_dict(path)
        assert peak() < 2_000_000


@pytest.mark.parametrize("size", [2**31, 2**32 - 2])
def test_declared_sizes_allocate_nothing(path, size):
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS)
    patch_last_sizes(path, size, size)
    with traced() as peak:
        with pytest.raises(TorchFileError, match="members that fit the file"):
            read_state_dict(path)
        assert peak() < 1_000_000


def test_a_compressed_member_of_unchanged_size(path):
    save(path, DICT_OF % tensor_opcodes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(4000))
    patch_last_sizes(path, 16, 16)
    with pytest.raises(TorchFileError, match="uncompressed members"):
        read_state_dict(path)


def test_a_member_cannot_hide_bytes_from_the_checksum(path):
    save(path, DICT_OF % tensor_opcodes(count=2, size=(2,)), FOUR_FLOATS)
    patch_last_sizes(path, 16, 8)
    with pytest.raises(TorchFileError, match="uncompressed members"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "archive/../../x", "C:/x", "C:x", "..\\x", "archive\\..\\..\\x"]
)
def test_member_names_outside_the_archive(path, name):
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(TorchFileError, match="member names inside the archive"):
        read_state_dict(path)


def test_duplicate_members(path):
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr(zipfile.ZipInfo("archive/data/0"), bytes(16))
    with pytest.raises(TorchFileError, match="duplicates"):
        read_state_dict(path)


def test_overlapping_members(path):
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS, filler=bytes(64))
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entries = content[directory:end]
    count, size = 3 * 2, 2 * len(entries)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size, directory, 0)
    path.write_bytes(content[:directory] + entries * 2 + tail)
    with pytest.raises(TorchFileError, match=r"duplicates|damage"):
        read_state_dict(path)


def test_no_pickle_or_two(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/version", b"3\n")
    with pytest.raises(TorchFileError, match=r"expected one <folder>/data.pkl, found 0"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", b".")
        archive.writestr("b/data.pkl", b".")
    with pytest.raises(TorchFileError, match="found 2"):
        read_state_dict(path)


def test_oversized_pickle(path):
    save(path, DICT_OF % tensor_opcodes() + bytes(1 << 20), FOUR_FLOATS)
    with pytest.raises(TorchFileError, match=r"data\.pkl of at most 1048576 bytes"):
        read_state_dict(path)


def test_unknown_byte_order(path):
    save(path, DICT_OF % tensor_opcodes(), FOUR_FLOATS, byteorder=b"middle")
    with pytest.raises(TorchFileError, match="'little' or 'big', found b'middle'"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j"])
def test_other_files_say_how_to_save_again(path, content):
    path.write_bytes(content)
    with pytest.raises(TorchFileError, match=r"torch\.save\(torch\.load|found damage"):
        read_state_dict(path)


def small_file(path: Path, order: str) -> dict[str, np.ndarray]:
    """Writes three tensors, two of them on one storage, and returns them."""
    tensors = {
        "w": tensor_opcodes(size=(2, 2), stride=(1, 2)),
        "v": tensor_opcodes(offset=2, size=(2,)),
        "half": tensor_opcodes(key="1", storage="HalfStorage", count=3, size=(3,)),
    }
    pickled = b"\x80\x02}(" + b"".join(opcodes(k) + v for k, v in tensors.items()) + b"u."
    floats, halves = np.arange(4, dtype=f"{order}f4"), np.ones(3, f"{order}f2")
    marker = b"little" if order == "<" else b"big"
    save(path, pickled, floats.tobytes(), halves.tobytes(), byteorder=marker, version=b"3\n")
    return read_state_dict(path)


def overwrite(path: Path, content: bytes | bytearray) -> None:
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize("order", ["<", ">"])
def test_flipped_bytes_give_the_same_tensors_or_our_error(path, order):
    tensors = small_file(path, order)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[position] ^= rng.integers(1, 256)
        overwrite(path, damaged)
        try:
            assert_same(read_state_dict(path), tensors)
        except TorchFileError:
            refused += 1
    assert 1000 < refused < 3000


def test_every_flipped_byte_of_the_content_is_noticed(path):
    small_file(path, "<")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        spans = [
            (content.index(archive.read(info), info.header_offset), info.file_size)
            for info in archive.infolist()
            if not info.filename.endswith("version")
        ]
    for start, length in spans:
        for position in range(start, start + length):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            overwrite(path, damaged)
            with pytest.raises(TorchFileError):
                read_state_dict(path)


def test_mutated_pickles_give_tensors_or_our_error(path):
    small_file(path, "<")
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    rng = np.random.default_rng(0)
    codes = np.frombuffer("".join(op.code for op in pickletools.opcodes).encode("latin1"), "u1")
    for _ in range(1000):
        mutated = bytearray(pickled)
        for position in rng.integers(2, len(pickled), size=rng.integers(1, 4)):
            mutated[position] = rng.choice(codes)
        save(path, bytes(mutated), FOUR_FLOATS, bytes(6))
        try:
            tensors = read_state_dict(path)
        except TorchFileError:
            continue
        assert all(tensor.size <= 4 for tensor in tensors.values())


def test_truncated_anywhere(path):
    small_file(path, "<")
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(TorchFileError):
            read_state_dict(path)


# Against torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def assert_reads_like_torch(torch, path):
    loaded = torch.load(path, weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    tensors = read_state_dict(path)
    assert list(tensors) == list(loaded)
    for name, tensor in loaded.items():
        widened = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert_same({name: tensors[name]}, {name: widened.detach().numpy()})


@pytest.mark.parametrize("name", ["encoder.ckpt", "decoder.ckpt"])
def test_reference_model_like_torch(torch, name):
    assert_reads_like_torch(torch, REFERENCE / name)


DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64 complex128"


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_dtypes_and_views_like_torch(torch, path, dtype):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).mul(3)
    base = base.to(getattr(torch, dtype))
    views = {
        "base": base,
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "offset": base[2:],
        "scalar": base[3, 5],
        "empty": base[:0],
        "no elements": torch.empty(0, 3, dtype=base.dtype),
        "copy": base.clone(),
    }
    torch.save(views, path, _use_new_zipfile_serialization=True)
    assert_reads_like_torch(torch, path)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "n": 1}])
def test_modules_like_torch(torch, path, wrap):
    layers = torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.PReLU()
    module = torch.nn.Sequential(*layers)
    torch.save(wrap(module.state_dict()), path)
    assert_reads_like_torch(torch, path)
    torch.save(wrap(dict(module.named_parameters())), path)
    assert_reads_like_torch(torch, path)


def test_the_older_torch_format_says_how_to_save_again(torch, path):
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match=r"torch\.save\(torch\.load\(path"):
        read_state_dict(path)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("under", [None, "state_dict"])
def test_torch_reads_what_is_written(torch, path, weights_only, under):
    rng = np.random.default_rng(0)
    tensors = {dtype: rng.integers(-9, 9, (3, 2)).astype(dtype) for dtype in NATIVE_DTYPES}
    tensors |= {"scalar": np.array(2, "i8"), "empty": np.zeros((2, 0, 3), "f4")}
    tensors |= {"nan": np.array([0x7FC00001, 0xFF800000], "u4").view("f4")}
    write_state_dict(path, tensors, under=under)
    loaded = torch.load(path, weights_only=weights_only)
    loaded = loaded if under is None else loaded[under]
    assert_same({name: tensor.numpy() for name, tensor in loaded.items()}, tensors)
    assert all(tensor.is_contiguous() for tensor in loaded.values())
