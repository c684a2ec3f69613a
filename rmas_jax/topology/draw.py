"""Pictures of a topology: as text, and as a figure."""

from __future__ import annotations

import io
from pathlib import Path

from rmas_jax.host.atomic import write_atomic
from rmas_jax.topology.graph import Topology

SUFFIXES = (".svg", ".png", ".pdf")


def as_text(topology: Topology) -> str:
    """Levels from top to bottom, with the senders of each role."""
    feedback = set(topology.feedback_edges)
    width = max(map(len, topology.order))
    lines = [f"{topology.name}: {len(topology.order)} agents, {len(topology.edges)} edges"]
    for number, roles in enumerate(topology.levels, start=1):
        for role in roles:
            reads = ["question"] + [
                f"{sender} (previous round)" if (sender, role) in feedback else sender
                for sender in topology.senders(role)
            ]
            note = "  => answers in the last round" if role == topology.answerer else ""
            lines.append(f"  level {number}  {role:<{width}}  <- {', '.join(reads)}{note}")
    return "\n".join(lines)


def save_figure(topology: Topology, path: str | Path) -> None:
    """Draws levels from left to right; feedback into the next round is dashed.

    Args:
      topology: the topology.
      path: ends in one of SUFFIXES.
    """
    from matplotlib.figure import Figure  # slow to import, and only pictures need it
    from matplotlib.patches import FancyArrowPatch

    place = {
        role: (level, (len(roles) - 1) / 2 - i)
        for level, roles in enumerate(topology.levels)
        for i, role in enumerate(roles)
    }
    rows = max(map(len, topology.levels))
    figure = Figure(figsize=(3.0 * len(topology.levels) + 0.6, 1.1 * rows + 1.2))
    axes = figure.add_subplot()
    for role, (x, y) in place.items():
        answers = role == topology.answerer
        style = {"boxstyle": "round,pad=0.5", "fc": "#dcebf7" if answers else "white", "ec": "#333"}
        axes.text(x, y, role, ha="center", va="center", bbox=style, zorder=3)
    feedback = set(topology.feedback_edges)
    for edge in topology.edges:
        back = edge in feedback
        arrow = FancyArrowPatch(
            place[edge[0]],
            place[edge[1]],
            arrowstyle="-|>",
            mutation_scale=14,
            shrinkA=40,
            shrinkB=40,
            linestyle="--" if back else "-",
            color="#c1440e" if back else "#333",
            connectionstyle="arc3,rad=-0.35" if back else "arc3,rad=0",
        )
        axes.add_patch(arrow)
    axes.set_xlim(-0.6, len(topology.levels) - 0.4)
    axes.set_ylim(-rows / 2 - 0.7, rows / 2 + 0.3)
    axes.set_title(f"{topology.name} (dashed: into the next round)", fontsize=10)
    axes.axis("off")
    picture = io.BytesIO()  # a full disk leaves no partial file
    figure.savefig(picture, format=Path(path).suffix.lower()[1:], bbox_inches="tight")
    write_atomic(Path(path), picture.getvalue())
