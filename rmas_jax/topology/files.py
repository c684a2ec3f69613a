"""Topologies from YAML files: shipped ones and the user's own."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from rmas_jax.host.errors import shown
from rmas_jax.host.inputs import local_input
from rmas_jax.host.yaml_files import read_yaml
from rmas_jax.topology.graph import Topology, TopologyError

FIELDS = ("name", "order", "edges", "answerer")
ARROW = "->"
LONGEST = 100  # characters of a name, which is part of file names and prompts
NAME = re.compile(rf"(?=.{{1,{LONGEST}}}\Z)\w[\w. -]*", re.DOTALL)
FOLDER = Path(str(resources.files("rmas_jax.topology")))


def shipped_topologies() -> list[str]:
    """Names of the shipped topologies."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_topology(name_or_path: str | Path) -> Topology:
    """Reads a shipped topology by name, or a YAML file (.yaml or .yml).

        name: sequential
        order: [planner, critic, solver]     # of their turns in a round
        edges: [planner -> critic, critic -> solver, solver -> planner]
        answerer: solver                     # the last in order

    Raises:
      TopologyError: names the file and the fault.
    """
    path = local_input(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise TopologyError(
            f"a topology must be a path to a YAML file or one of "
            f"{', '.join(shipped_topologies())}, got {shown(str(name_or_path), 300)}"
        )
    raw = read_yaml(path, error=TopologyError)
    if not isinstance(raw, dict) or set(raw) != set(FIELDS):
        found = sorted(map(str, raw)) if isinstance(raw, dict) else raw
        raise TopologyError(
            f"{path}: the fields must be {', '.join(FIELDS)}, got {shown(found, 200)}"
        )
    for field, kind in (("name", str), ("order", list), ("edges", list), ("answerer", str)):
        texts = raw[field] if kind is list else [raw[field]]
        if not isinstance(raw[field], kind) or not all(isinstance(x, str) for x in texts):
            wanted = "a list of texts" if kind is list else "a text"
            raise TopologyError(f"{path}: {field} must be {wanted}, got {shown(raw[field])}")
        if wrong := [text for text in texts if field != "edges" and not NAME.fullmatch(text)]:
            raise TopologyError(
                f"{path}: {field}: a name must have 1 to {LONGEST} characters, letters, digits, "
                "spaces and any of _.-, and must begin with a letter or digit or _, got "
                f"{shown(wrong[0])}"
            )
    edges = []
    for text in raw["edges"]:
        ends = tuple(end.strip() for end in text.split(ARROW))
        if len(ends) != 2 or not all(ends):
            raise TopologyError(f"{path}: edges must be sender {ARROW} receiver, got {shown(text)}")
        edges.append(ends)
    try:
        return Topology(raw["name"], tuple(raw["order"]), tuple(edges), raw["answerer"])
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
