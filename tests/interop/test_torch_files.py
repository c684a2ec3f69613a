"""Files of torch.save: what torch makes of them, and files that are made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from rmas_jax.host.errors import MESSAGE_LIMIT
from rmas_jax.interop import read_state
from rmas_jax.interop.torch_state import MAX_DIRECTORY, MAX_PICKLE
from rmas_jax.models import CheckpointError


def assert_as_torch(path):
    """Against torch's own reader."""
    theirs = torch.load(path, weights_only=False)  # these files are ours
    ours = read_state(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.detach().resolve_neg().double().numpy()
        np.testing.assert_array_equal(ours[name].astype(np.float64), expected)
    return ours


def test_a_negative_bit_is_a_sign(tmp_path):
    numbers = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    imaginary = torch.view_as_complex(numbers).conj().imag  # [2.0, -0.5], stored as -2, 0.5
    assert imaginary.is_neg()
    state = {
        "negated": torch._neg_view(numbers),
        "part": torch._neg_view(numbers)[1:, 0],
        "imaginary": imaginary,
        "half": torch._neg_view(numbers.half()),
        "parameter": torch.nn.Parameter(torch._neg_view(numbers)),
        "plain": numbers,
    }
    torch.save(state, tmp_path / "link.pt")
    ours = assert_as_torch(tmp_path / "link.pt")
    np.testing.assert_array_equal(ours["negated"], -numbers.numpy())
    np.testing.assert_array_equal(ours["imaginary"], [2.0, -0.5])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_writes(tmp_path, protocol):
    layer = torch.nn.Linear(3, 2)  # its state dict has attributes
    state = layer.state_dict()
    state["tied"] = state["weight"]
    state["again"] = state["weight"][:, 1]
    state["wide"] = torch.ones(1).expand(1000, 50)  # strides of zero
    torch.save(state, tmp_path / "link.pt", pickle_protocol=protocol)
    assert_as_torch(tmp_path / "link.pt")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"w": torch.zeros(2, dtype=torch.int32)}, "torch.IntStorage"),
        ({"w": torch.zeros(2, dtype=torch.bool)}, "torch.BoolStorage"),
        ({"w": torch.zeros(0)}, "a tensor of shape"),
        ({"w": torch.zeros(2), "step": 3}, "tensors by name alone, got a dict with 'step'"),
        ({1: torch.zeros(2)}, "the key 1 in a dict"),
        ({"w": {"deep": torch.zeros(2)}}, "got a dict with 'w'"),
        ({"w": torch.zeros(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "must hold tensors"),
        (torch.zeros(2), "got a TensorView"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_things_that_torch_saves_are_refused_by_name(tmp_path, state, words):
    torch.save(state, tmp_path / "link.pt")
    with pytest.raises(CheckpointError, match=r"link\.pt") as error:
        read_state(tmp_path / "link.pt")
    assert words in str(error.value) and len(str(error.value)) < MESSAGE_LIMIT


# --- Harm -----------------------------------------------------------------------------------------

TEN_BILLION = 10**10


def number(n):
    return pickle.LONG1 + b"\x08" + n.to_bytes(8, "little", signed=True)


def text(value):
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def numbers(*values):
    return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE


def name(module, what):
    return pickle.GLOBAL + f"{module}\n{what}\n".encode()


def storage(key=None):
    key = text("0") if key is None else key
    return (
        pickle.MARK
        + text("storage")
        + name("torch", "FloatStorage")
        + key
        + text("cpu")
        + number(4)
        + pickle.TUPLE
        + pickle.BINPERSID
    )


def tensor(shape, strides, *, offset=0, of=None, metadata=b""):
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + (storage() if of is None else of)
        + number(offset)
        + shape
        + strides
        + pickle.NEWFALSE
        + name("collections", "OrderedDict")
        + pickle.EMPTY_TUPLE
        + pickle.REDUCE
        + metadata
        + pickle.TUPLE
        + pickle.REDUCE
    )


def state(*items):
    pairs = b"".join(items)
    return b"\x80\x02" + pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS + pickle.STOP


def doubled(depth):
    """A tuple of itself twice, and so on: small here, 2 ** depth when it is printed or hashed."""
    out = text("x" * 10) + pickle.TUPLE1 + pickle.BINPUT + b"\0"
    for _ in range(depth):
        out += pickle.BINGET + b"\0" + pickle.TUPLE2 + pickle.BINPUT + b"\0"
    return out


def memo_index(index):
    return text("w") + pickle.LONG_BINPUT + struct.pack("<I", index)


SQUARE = tensor(numbers(2, 2), numbers(2, 1))
PICKLES = {
    "strides of zero": state(text("w"), tensor(numbers(TEN_BILLION), numbers(0))),
    "many of them": state(
        *(text(f"w{i}") + tensor(numbers(10**5), numbers(0)) for i in range(10_000))
    ),
    "beyond the storage": state(text("w"), tensor(numbers(5), numbers(1))),
    "offset beyond": state(text("w"), tensor(numbers(1), numbers(1), offset=2**60)),
    "offset before": state(text("w"), tensor(numbers(1), numbers(1), offset=-1)),
    "negative size": state(text("w"), tensor(numbers(-1), numbers(1))),
    "negative stride": state(text("w"), tensor(numbers(2), numbers(-1), offset=1)),
    "many dimensions": state(text("w"), tensor(numbers(*[1] * 10**5), numbers(*[1] * 10**5))),
    "sizes that are no numbers": state(text("w"), tensor(text("ab"), numbers(1, 1))),
    "unknown mark": state(
        text("w"),
        tensor(
            numbers(2),
            numbers(1),
            metadata=pickle.EMPTY_DICT + text("odd") + pickle.NEWTRUE + pickle.SETITEM,
        ),
    ),
    "reference of 10^10 characters": state(text("w"), doubled(30) + pickle.BINPERSID),
    "key of 10^10 characters": state(text("w"), storage(doubled(30))),
    "key that takes for ever to hash": state(doubled(40), SQUARE),
    "shape of 10^10 characters": state(text("w"), tensor(doubled(30), numbers(1))),
    "instruction that is not needed": state(text("w"), text("x") + pickle.POP, SQUARE),
    "missing storage": state(text("w"), tensor(numbers(1), numbers(1), of=storage(text("7")))),
    "storage elsewhere": state(text("w"), tensor(numbers(1), numbers(1), of=storage(text("../0")))),
    "number of 2,000 bits": state(
        text("w"),
        tensor(pickle.MARK + pickle.LONG1 + b"\xff" + b"\x7f" * 255 + pickle.TUPLE, numbers(1)),
    ),
    "text that is cut": b"\x80\x02" + pickle.BINUNICODE + struct.pack("<I", 2**31) + b"x",
    "text of 2^62": b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"x",
    "frame of 2^62": b"\x80\x04" + pickle.FRAME + struct.pack("<Q", 2**62) + b"}",
    "number of 2^31 bytes": b"\x80\x02" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"x",
    "array of bytes": b"\x80\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**40) + b"x",
    "no end": b"\x80\x02" + pickle.EMPTY_DICT,
    "nothing": b"",
    "empty stack": b"\x80\x02" + pickle.TUPLE3 + pickle.STOP,
    "no mark": b"\x80\x02" + pickle.TUPLE + pickle.STOP,
    "unknown memo": b"\x80\x02" + pickle.BINGET + b"\x07" + pickle.STOP,
    "attributes of a tensor": state(text("w"), SQUARE + pickle.EMPTY_DICT + pickle.BUILD),
    "call of a tensor": state(text("w"), SQUARE + pickle.EMPTY_TUPLE + pickle.REDUCE),
    "import by parts": b"\x80\x04" + text("os") + text("system") + pickle.STACK_GLOBAL,
    "object": b"\x80\x02" + name("collections", "OrderedDict") + b")" + pickle.NEWOBJ,
    "extension": b"\x80\x02" + pickle.EXT4 + struct.pack("<i", 2**30) + pickle.STOP,
    "buffers": b"\x80\x05" + pickle.NEXT_BUFFER + pickle.STOP,
    "list of lists": b"\x80\x02" + pickle.EMPTY_LIST * 10**5 + pickle.STOP,
}


@pytest.fixture
def archive(tmp_path):
    """Function that writes an archive with a pickle and a storage of four numbers."""

    def write(pickled, *, compression=zipfile.ZIP_STORED, more=()):
        with zipfile.ZipFile(tmp_path / "link.pt", "w", compression) as out:
            out.writestr("link/data.pkl", pickled)
            out.writestr("link/data/0", np.arange(4, dtype=np.float32).tobytes())
            for member, content in more:
                out.writestr(member, content)
        return tmp_path / "link.pt"

    return write


def refusal(path):
    """The message, which takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"link\.pt") as error:
            read_state(path)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < MESSAGE_LIMIT
    return str(error.value)


def test_the_builders_above_make_files_that_torch_reads(archive):
    path = archive(state(text("w"), SQUARE), more=[("link/version", "3\n")])
    np.testing.assert_array_equal(assert_as_torch(path)["w"], [[0, 1], [2, 3]])


@pytest.mark.parametrize("kind", PICKLES)
def test_harm_in_a_pickle_is_refused(archive, kind):
    refusal(archive(PICKLES[kind]))


def test_a_memo_index_costs_nothing(archive):
    """The pickle module makes room for all indices below."""
    index = 2**29
    path = archive(state(memo_index(index), SQUARE))
    tracemalloc.start()
    np.testing.assert_array_equal(read_state(path)["w"], [[0, 1], [2, 3]])
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_archives_that_grow_are_refused(archive):
    bomb = ("link/data/1", b"\0" * 10**8)
    path = archive(state(text("w"), SQUARE), compression=zipfile.ZIP_DEFLATED, more=[bomb])
    assert "must be uncompressed" in refusal(path)
    path = archive(b"\0" * (MAX_PICKLE + 1))
    assert "data.pkl must be at most 4 MiB" in refusal(path)


def test_members_that_overlap_are_refused(archive):
    """Every entry of the table of contents leads to the same bytes."""
    path = archive(state(text("w"), SQUARE))
    raw = path.read_bytes()
    start = raw.index(b"PK\1\2")
    entry = raw[raw.rindex(b"PK\1\2") : raw.rindex(b"PK\5\6")]
    assert entry.endswith(b"link/data/0")
    entries = b"".join(entry[:-1] + bytes([i]) for i in range(33, 120))
    large = bytearray(raw[:start] + entries * 1 + raw[raw.rindex(b"PK\5\6") :])
    struct.pack_into("<HHI", large, len(large) - 14, 87, 87, len(entries))
    path.write_bytes(bytes(large))
    refusal(path)


def test_a_table_of_contents_has_bounds(archive):
    path = archive(state(text("w"), SQUARE))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, len(raw) - 10, MAX_DIRECTORY + 1)
    path.write_bytes(bytes(raw))
    assert "its table of contents must be at most 4 MiB" in refusal(path)
    # The record that very large archives have, in front of the other one.
    struct.pack_into("<I", raw, len(raw) - 10, 2**32 - 1)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 9, 9, 2**40, 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(raw) - 22, 1)
    path.write_bytes(bytes(raw[:-22]) + record + locator + bytes(raw[-22:]))
    assert "got 1,024 GiB" in refusal(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "dangling", "loop", "sparse"])
def test_what_is_no_regular_file_of_a_link_is_refused(tmp_path, suffix, kind):
    path = tmp_path / f"link{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**42)
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "none", "loop": path.name}[kind])
    with pytest.raises(CheckpointError, match=f"link{suffix}: "):
        read_state(path)


def test_any_file_that_is_cut_or_flipped_is_read_or_refused(tmp_path):
    """Of 300 mutations each ends in an array of the right shape or in one error."""
    out = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, out)
    whole, rng = out.getvalue(), np.random.default_rng(0)
    path, refused = tmp_path / "link.pt", 0
    for _ in range(300):
        raw = bytearray(whole)
        for at in rng.integers(len(raw), size=rng.integers(1, 4)):
            raw[at] = rng.integers(256)
        path.write_bytes(bytes(raw[: rng.integers(1, len(raw) + 200)]))
        try:
            assert all(isinstance(x, np.ndarray) for x in read_state(path).values())
        except CheckpointError as error:
            refused += 1
            assert len(str(error)) < MESSAGE_LIMIT
    assert refused > 100
