"""Dumps of a compiler: whole or not, and their sizes against those of the compiled program."""

import itertools
import shutil
from pathlib import Path

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rmas_jax.planning.dumps import dump_of, read_dump
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.hlo_text import Shape
from rmas_jax.planning.without_code import split_of
from rmas_jax.sharding import make_mesh

# By libtpu 0.0.52 for v5e:2x2, of: b + tanh(y @ w @ w.T) three times @ w, and (x * x).sum(), for
# bf16 x [64, 1024] split over rows, w [1024, 4096] split over columns, donated f32 b [64, 4096].
RECORDED = Path(__file__).parent / "recorded"
PROGRAM, BUFFERS = RECORDED / "program.txt", RECORDED / "buffers.txt"
# Of `memory_analysis` of the same program, compiled with machine code.
SIZES = {"argument": 2392064, "output": 263168, "alias": 262144}
TEMPORARIES, CODE = 98304, 1575936


def test_sizes_of_a_dump_are_those_of_the_whole_compilation():
    found = dump_of(PROGRAM.read_text(), BUFFERS.read_text())
    sizes = dict(found.sizes)
    temporaries, code = sizes.pop("temp"), sizes.pop("generated_code")
    assert sizes == SIZES
    assert TEMPORARIES <= temporaries <= TEMPORARIES + 512
    assert code >= CODE
    assert [(x.dtype, x.sizes) for x in found.results] == [("f32", (16, 4096)), ("bf16", ())]
    cost = program_cost(found.text)
    assert cost.flops == 2 * 16 * 1024 * 4096 * (3 * 2 + 1)
    # Weights of three other chips, in each of three iterations and after them.
    assert cost.by_kind["all-gather"] == (3 + 1, (3 + 1) * 3 * 2 * 256 * 4096)
    # The control: what is in another memory, such as VMEM, does not count, and counts elsewhere.
    moved = BUFFERS.read_text().replace(
        "color 1, page 0, preallocated-temp", "page 0, preallocated-temp"
    )
    assert dump_of(found.text, moved).sizes["temp"] > 80 * TEMPORARIES


def test_a_dump_is_read_once_it_is_whole(tmp_path):
    assert read_dump(tmp_path / "none") is None
    first = tmp_path / "a.txt"
    shutil.copy(PROGRAM, first)  # scheduled, before buffers are assigned
    assert read_dump(tmp_path) is None
    shutil.copy(BUFFERS, tmp_path / "b.txt")
    assert read_dump(tmp_path) is None
    text, last = PROGRAM.read_text(), tmp_path / "c.txt"
    for part in (100, len(text) // 2, text.rindex("}") - 1):
        last.write_text(text[:part])
        assert read_dump(tmp_path) is None
    last.write_text(text)
    found = read_dump(tmp_path)
    assert found is not None and found.text == text


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 4, 1), (8, 1, 1)])
def test_the_split_of_an_array_is_found_from_a_part(sizes):
    mesh = make_mesh(*sizes)
    axes = [(), ("fsdp",), ("model",), ("data", "fsdp")]
    for first, second in itertools.product(axes, axes):
        if not set(first) & set(second):
            spec = PartitionSpec(first, None, second)
            wanted = NamedSharding(mesh, spec)
            part = Shape("f32", wanted.shard_shape((16, 5, 24)), False)
            assert split_of((16, 5, 24), part, wanted).is_equivalent_to(wanted, 3)


def test_the_split_of_a_key_and_of_an_array_on_one_device():
    mesh = make_mesh(1, 8, 1)
    whole = NamedSharding(mesh, PartitionSpec())
    key = split_of((4,), Shape("u32", (4, 2), False), whole)
    assert key.is_equivalent_to(whole, 1)
    alone = SingleDeviceSharding(jax.devices()[0])
    assert split_of((4,), Shape("f32", (4,), False), alone) is alone
    with pytest.raises(ValueError, match=r"a part must be made by axes of .*, got 5 of 16"):
        split_of((16,), Shape("f32", (5,), False), whole)
