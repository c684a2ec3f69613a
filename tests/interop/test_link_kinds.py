"""Links are finite floating-point numbers, whichever way they come in."""

from __future__ import annotations

import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from released import write_release

from rmas_jax.cli.ask import main as ask
from rmas_jax.cli.convert import main as convert
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT, MESSAGE_LIMIT, InputError
from rmas_jax.interop import (
    read_inner_link,
    read_links,
    read_outer_links,
    read_released_links,
    write_released_links,
)
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.interop.torch_state import write_state
from rmas_jax.links import INNER, LinkConfig, Links, link_shapes
from rmas_jax.models import CheckpointError
from rmas_jax.team import load_links_for, load_team, start_links

CONFIG = "quickstart"
NAME = "inner/planner/proj1/kernel"


def with_value(value, dtype=np.float32):
    def change(array):
        out = array.astype(dtype)
        out[-1, 0] = value
        return out

    return change


WRONG = {
    "int8": (lambda x: x.astype(np.int8), "must be float64 or float32 or .*, got int8"),
    "int32": (lambda x: x.astype(np.int32), "must be .*, got int32"),
    "int64": (lambda x: x.astype(np.int64), "must be .*, got int64"),
    "uint8": (lambda x: x.astype(np.uint8), "must be .*, got uint8"),
    "bool": (lambda x: x > 0, "must be .*, got bool"),
    "complex": (lambda x: x.astype(np.complex64), "complex64|C64"),
    "NaN": (with_value(np.nan), "must be finite in float32, got 1 of 4,096 numbers"),
    "infinite": (with_value(-np.inf), "must be finite in float32, got 1 of 4,096 numbers"),
    "NaN in bfloat16": (with_value(np.nan, ml_dtypes.bfloat16), "must be finite"),
    "NaN in float16": (with_value(np.nan, np.float16), "must be finite"),
    "beyond float32": (
        with_value(1e300, np.float64),
        "must be finite in float32, got 1 of 4,096 numbers",
    ),
    "all NaN": (lambda x: x * np.nan, "4,096 of 4,096 numbers"),
    "empty": (lambda x: x[:0], r"must have numbers, got the shape \(0, 64\)"),
    "turned": (lambda x: x[None], "must be those of a link variant"),
}


@pytest.fixture(scope="module")
def team():
    return load_team(load_config(CONFIG).system)


@pytest.fixture(scope="module")
def whole(team, tmp_path_factory):
    """A file of links that the team runs with."""
    path = tmp_path_factory.mktemp("links") / "links.safetensors"
    save_links(path, start_links(team, start="identity", key=jax.random.key(0)))
    return path


@pytest.fixture
def links(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "links.safetensors")


def change(path, edit):
    """Rewrites one array; also of kinds that are no links."""
    tensors = safetensors.numpy.load_file(path)
    tensors[NAME] = np.ascontiguousarray(edit(tensors[NAME]))
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_ours(team, links, kind):
    edit, words = WRONG[kind]
    change(links, edit)
    config = load_config(CONFIG, [f"system.links={links}"]).system
    ways = [lambda: read_links(links), lambda: load_links_for(team, config)]
    if kind != "turned":  # load_links leaves shapes to those who know the system
        ways.append(lambda: load_links(links))
    for read in ways:
        with pytest.raises(CheckpointError, match=words) as error:
            read()
        message = str(error.value)
        assert str(links) in message and len(message) < MESSAGE_LIMIT
        assert kind == "turned" or NAME in message


@pytest.mark.parametrize("kind", ["int32", "NaN", "empty"])
def test_the_commands_say_so(links, tmp_path, capsys, kind):
    change(links, WRONG[kind][0])
    out = tmp_path / "out"
    common = ["--config", CONFIG, "--set", f"output_dir={out}", "Where?"]
    for call in (
        lambda: ask(["--links", str(links), *common]),
        lambda: ask([*common, "--set", f"system.links={links}"]),
        lambda: convert([str(links), str(out)]),
        lambda: convert([str(links), str(out / "again.safetensors")]),
        lambda: convert([str(links), str(out / "again.pt")]),
    ):
        assert call() == BAD_INPUT
        message = capsys.readouterr().err
        assert NAME in message and message.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_floating_point_of_any_width_is_read_as_float32(links, dtype):
    expected = safetensors.numpy.load_file(links)[NAME].astype(dtype).astype(np.float32)
    change(links, lambda x: x.astype(dtype))
    for loaded in (
        load_links(links).inner,
        {"planner": read_links(links)["inner"]["planner"][1]},
    ):
        kernel = loaded["planner"]["proj1"]["kernel"]
        assert isinstance(kernel, jax.Array) and kernel.dtype == jnp.float32
        np.testing.assert_array_equal(kernel, expected)


def test_every_array_that_is_wrong_is_named(links):
    tensors = safetensors.numpy.load_file(links)
    bad = {name: x.astype(np.int32) for name, x in tensors.items()}
    safetensors.numpy.save_file(bad, links)
    with pytest.raises(CheckpointError, match=rf"and {len(bad) - 12} more$") as error:
        load_links(links)
    assert str(error.value).count("got int32") == 12


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "text", "folder"])
def test_a_damaged_file_of_ours(links, damage):
    whole = links.read_bytes()
    links.unlink()
    if damage == "folder":
        links.mkdir()
    elif damage != "gone":
        links.write_bytes({"cut": whole[:-5], "empty": b"", "text": b"{}" * 50}[damage])
    for read in (load_links, read_links):
        with pytest.raises(CheckpointError, match=r"links\.safetensors: "):
            read(links)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_pipe_is_not_written_to(tmp_path, suffix):
    """Opening it would wait for a reader."""
    path = tmp_path / f"link{suffix}"
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"link\{suffix}: must be a regular file, got a pipe"):
        write_state(path, {"w": np.ones(3, np.float32)})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# --- Released links -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_released_links(tmp_path, value):
    write_release(tmp_path, "distillation", {"expert": 4, "learner": 6}, torch.float64)
    role = tmp_path / "expert" / "adapter(math).pt"
    edge = tmp_path / "outer" / "Expert-Learner-Outerlink(math).pt"
    for path, read in (
        (role, lambda: read_inner_link(tmp_path / "expert", task="math")),
        (edge, lambda: read_outer_links(tmp_path / "outer", task="math")),
    ):
        read()
        state = torch.load(path)
        state["proj2.weight"][1, 2] = value
        torch.save(state, path)
        with pytest.raises(
            CheckpointError, match=r"proj2\.weight must be finite .*, got 1 of"
        ) as error:
            read()
        assert path.name in str(error.value)


@pytest.mark.parametrize("target", ["/dev/zero", "nowhere", None])
@pytest.mark.parametrize(
    "file",
    ["expert/adapter_config.json", "expert/innerlink_config.json", "outer/outerlink_config.json"],
)
def test_descriptions_that_are_no_files(tmp_path, file, target):
    write_release(tmp_path, "distillation", {"expert": 4, "learner": 6})
    path = tmp_path / file
    path.unlink()
    path.symlink_to(target) if target else os.mkfifo(path)
    with pytest.raises(CheckpointError, match=path.name):
        read_released_links(
            tmp_path / "outer", {r: tmp_path / r for r in ("expert", "learner")}, task="math"
        )


def test_widths_of_none_are_no_link(tmp_path):
    config = LinkConfig(INNER, "ln_res", 4, 4)
    params = {
        module: {name: jnp.zeros((0,) * len(shape)) for name, shape in arrays.items()}
        for module, arrays in link_shapes(config).items()
    }
    save_links(tmp_path / "none.safetensors", Links(inner={"expert": params}, outer={}))
    with pytest.raises(CheckpointError, match="must have numbers"):
        read_links(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["", "..", ".", "../x.pt", "a/b.pt", "a\0b", "x" * 5000, 3, None])
def test_names_of_released_files_lead_nowhere_else(tmp_path, name):
    (tmp_path / "innerlink_config.json").write_text(
        json.dumps({"tasks": {"math": {"adapter.pt": name}}})
    )
    with pytest.raises(CheckpointError) as error:
        read_inner_link(tmp_path, task="math")
    assert len(str(error.value)) < MESSAGE_LIMIT


def test_a_link_that_is_read_can_be_written(links, tmp_path):
    """The control: nothing that is right is refused on the way."""
    write_released_links(tmp_path / "out", read_links(links))
    write_state(tmp_path / "one.pt", {"w": np.ones(3, np.float32)})
    assert convert([str(tmp_path / "one.pt"), str(tmp_path / "o.safetensors")]) == 0


@pytest.mark.parametrize("bit", [0, 5, 22])  # of a number
def test_a_flipped_bit_is_found_wherever_links_are_read(team, links, tmp_path, capsys, bit):
    whole = bytearray(links.read_bytes())
    whole[-len(whole) // 3 // 4 * 4 + bit // 8] ^= 1 << bit % 8
    links.write_bytes(whole)
    assert np.isfinite(safetensors.numpy.load_file(links)[NAME]).all()
    named = load_config(CONFIG, [f"system.links={links}"]).system
    for read in (load_links, read_links, lambda _: load_links_for(team, named)):
        with pytest.raises(CheckpointError, match=r"links\.safetensors: is damaged: its checksum"):
            read(links)
    out = tmp_path / "out"
    common = ["--config", CONFIG, "--set", f"output_dir={out}", "Where?"]
    for call in (
        lambda: ask(["--links", str(links), *common]),
        lambda: convert([str(links), str(out)]),
    ):
        assert call() == BAD_INPUT
        assert "is damaged" in capsys.readouterr().err
    assert not out.exists()


def test_metadata_may_be_null(links):
    raw = links.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:end]) | {"__metadata__": None}).encode()
    links.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
    assert load_links(links).inner.keys() == {"planner", "critic", "solver"}
