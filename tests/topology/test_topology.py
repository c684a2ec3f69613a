"""What a topology must be, and which of its edges feed back."""

from __future__ import annotations

import itertools
import os

import pytest
import yaml

from rmas_jax.cli.topology import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.topology import (
    Topology,
    TopologyError,
    edge_name,
    load_topology,
    shipped_topologies,
)


def topology(**changes) -> Topology:
    fields = {"name": "mine", "order": ("a", "b"), "edges": (("a", "b"),), "answerer": "b"}
    return Topology(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": ("a", "b", "a", "b")}, "roles must be distinct, got ('a', 'b', 'a', 'b')"),
        ({"edges": (("a", "b"), ("b", "c"))}, "edge ('b', 'c') must be between roles of"),
        ({"answerer": "a"}, "answerer must be the last of ('a', 'b'), got 'a'"),
        ({"answerer": "x"}, "answerer must be the last of ('a', 'b'), got 'x'"),
        ({"edges": (("b", "a"),)}, "edges must lead to the answerer 'b', got none"),
        ({"edges": ()}, "edges must lead to the answerer 'b', got none"),
        ({"edges": (("a", "b"), ("a", "b"))}, "edges must be distinct, got twice [('a', 'b')]"),
        (
            {"order": ("a", "c", "b"), "edges": (("a", "b"), ("b", "c"), ("c", "c"))},
            "from every role to the answerer 'b', got none from ['c']",
        ),
    ],
)
def test_a_topology_that_cannot_run_is_named(changes, words):
    with pytest.raises(TopologyError) as error:
        topology(**changes)
    assert str(error.value).startswith("mine: ")
    assert words in str(error.value)


def test_roles_and_edges_are_limited():
    names = tuple(f"r{i}" for i in range(30_000))
    with pytest.raises(TopologyError, match="mine: roles must be at most 64, got 30000"):
        topology(order=names, edges=tuple(itertools.pairwise(names)), answerer=names[-1])
    with pytest.raises(TopologyError, match="mine: edges must be at most 4096, got 30000"):
        topology(edges=(("a", "b"),) * 30_000)
    with pytest.raises(TopologyError, match="mine: order must have at least one role, got none"):
        topology(order=(), edges=())
    many = names[:64]
    edges = tuple((sender, many[-1]) for sender in many)
    assert len(topology(order=many, edges=edges, answerer=many[-1]).levels) == 2


def test_edges_to_the_same_or_an_earlier_stage_feed_back():
    edges = (("a", "b"), ("b", "a"), ("b", "b"), ("a", "c"), ("c", "b"), ("b", "c"))
    mine = topology(order=("a", "b", "c"), edges=edges, answerer="c")
    assert mine.feedback_edges == (("b", "a"), ("b", "b"), ("c", "b"))
    assert topology().feedback_edges == ()


def test_senders_stand_in_the_order_of_the_edges():
    edges = (("b", "c"), ("a", "c"), ("a", "b"))
    mine = topology(order=("a", "b", "c"), edges=edges, answerer="c")
    assert mine.senders("c") == ("b", "a")
    assert mine.senders("a") == ()


def test_stages_are_roles_that_do_not_hear_each_other_in_a_round():
    mixture = load_topology("mixture")
    assert mixture.levels == (("math", "code", "science"), ("summarizer",))
    assert len(mixture.feedback_edges) == 3
    assert load_topology("sequential").levels == (("planner",), ("critic",), ("solver",))
    # Feedback does not order the levels.
    edges = (("a", "b"), ("b", "a"), ("c", "c"), ("c", "b"))
    assert topology(order=("a", "c", "b"), edges=edges).levels == (("a", "c"), ("b",))


def test_the_sequential_loop_feeds_the_solver_back_to_the_planner():
    sequential = load_topology("sequential")
    assert sequential.feedback_edges == (("solver", "planner"),)
    assert edge_name(sequential.edges[0]) == "planner->critic"
    assert sequential == load_topology("sequential")
    assert hash(sequential) == hash(load_topology("sequential"))


# --- Files ----------------------------------------------------------------------------------------

RING = {"name": "ring", "order": ["a", "b"], "edges": ["a -> b", "b -> a"], "answerer": "b"}


@pytest.fixture
def write(tmp_path):
    """Function from fields that differ from RING to the path of a file."""

    def write(**changes):
        fields = {k: v for k, v in (RING | changes).items() if v is not None}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(fields))
        return path

    return write


def test_shipped_topologies_load_and_are_called_as_their_files():
    assert shipped_topologies() == [
        "deliberation",
        "distillation",
        "lone_planner",
        "lone_solver",
        "mixture",
        "pair",
        "sequential",
    ]
    for name in shipped_topologies():
        assert load_topology(name).name == name


def test_a_file_of_ones_own(write):
    expected = Topology("ring", ("a", "b"), (("a", "b"), ("b", "a")), "b")
    assert load_topology(write()) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answerer": None}, "the fields must be name, order, edges, answerer, got"),
        ({"agents": []}, "the fields must be name, "),
        ({"order": "a"}, "order must be a list of texts, got 'a'"),
        ({"order": ["a", 2]}, "order must be a list of texts"),
        ({"name": 1}, "name must be a text, got 1"),
        ({"edges": ["a b"]}, "edges must be sender -> receiver, got 'a b'"),
        ({"edges": ["a -> b -> a"]}, "edges must be sender -> receiver"),
        ({"edges": ["a -> "]}, "edges must be sender -> receiver"),
        ({"edges": ["a -> x"]}, "got ['x']"),
        ({"name": "a/b"}, "name: a name must have 1 to 100 characters, letters"),
        ({"name": "n" * 101}, "name: a name must have 1 to 100 characters"),
        ({"order": ["a", "../b"]}, "order: a name must have 1 to 100 characters"),
        ({"order": ["a", ""]}, "order: a name must have"),
        ({"order": ["a\0", "b"]}, "or _, got 'a\\x00'"),
        ({"order": [[["a"] * 5000]]}, "order must be a list of texts, got [[['a', 'a',"),
        ({"name": None, "x" * 100: 1}, "the fields must be name, "),
    ],
)
def test_a_file_that_is_wrong_is_named(write, changes, words):
    path = write(**changes)
    with pytest.raises(TopologyError) as error:
        load_topology(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    assert len(str(error.value)) < 1000


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        TopologyError, match=r"topology must be .*mixture, pair, sequential, got 'ring'"
    ):
        load_topology("ring")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(TopologyError, match="must be YAML"):
        load_topology(path)
    path.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(TopologyError, match=r"broken\.yaml: must be text in UTF-8"):
        load_topology(path)


def test_show_prints_and_draws(write, tmp_path, capsys):
    assert main(["mixture", "--out", str(tmp_path / "mixture.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mixture: 4 agents, 6 edges"
    assert lines[1].split() == (
        ["level", "1", "math", "<-", "question,", "summarizer", "(previous", "round)"]
    )
    assert lines[4].endswith("<- question, math, code, science  => answers in the last round")
    picture = (tmp_path / "mixture.svg").read_text()
    assert "<svg" in picture

    assert main([str(write(edges=[]))]) == BAD_INPUT
    assert "edges must lead to the answerer" in capsys.readouterr().err
    assert main(["mixture", "--out", str(tmp_path / "mixture.abc")]) == BAD_INPUT
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "must end in .svg, .png, .pdf, got no extension"),
        ("folder", "must end in .svg, .png, .pdf, got no extension"),  # was drawn to folder.png
        ("folder.svg", "must be a regular file, got a folder"),
        ("x.abc", "must end in .svg, .png, .pdf, got '.abc'"),
        ("missing/x.svg", "must be in an existing folder"),
        ("file/x.svg", "cannot be written (Not a directory)"),
        ("pipe.svg", "must be a regular file, got a pipe"),
        ("n" * 300 + ".svg", "cannot be written (File name too long)"),
        ("a\0.svg", "must be a path without NUL"),
    ],
)
def test_pictures_are_drawn_to_files_alone(tmp_path, capsys, out, words):
    for name in ("folder", "folder.svg"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.svg")
    before = sorted(tmp_path.rglob("*"))
    assert main(["mixture", "--out", f"{tmp_path}/{out}" if out else ""]) == BAD_INPUT
    shown = capsys.readouterr()
    assert shown.err.startswith("error: --out ") and words in shown.err and not shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_picture_is_replaced(tmp_path):
    out = tmp_path / "x.PNG"
    out.write_text("before")
    assert main(["mixture", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and [*tmp_path.iterdir()] == [out]
