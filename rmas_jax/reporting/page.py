"""A report as a page: its blocks, as one self-contained HTML file and as Markdown."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import jinja2

from rmas_jax.reporting.claims import Claim
from rmas_jax.reporting.table import Table
from rmas_jax.run_files import RunFiles


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    kind: str = "text"


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]
    kind: str = "bullets"


@dataclasses.dataclass(frozen=True)
class Claims:
    """Claims with their verdicts and numbers."""

    claims: tuple[Claim, ...]
    kind: str = "claims"


@dataclasses.dataclass(frozen=True)
class TableBlock:
    """A table."""

    table: Table
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, drawn once as SVG for the page and once as PNG for Markdown."""

    name: str  # stem of the PNG's file name
    caption: str
    svg: bytes
    png: bytes
    kind: str = "picture"

    @property
    def source(self) -> str:
        """The SVG as a data URI: a separate image, so that ids of two figures cannot clash."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


@dataclasses.dataclass(frozen=True)
class Code:
    """Verbatim text, folded away in HTML."""

    title: str
    text: str
    language: str
    kind: str = "code"


@dataclasses.dataclass(frozen=True)
class Items:
    """Answers one by one: a file with all, and a part of them for the page, folded away."""

    table: Table
    shown: Table
    kind: str = "items"

    @property
    def summary(self) -> str:
        """What the file has."""
        return (
            f"{RunFiles(Path()).table(self.table.stem)} has {len(self.table.rows):,} answers, one "
            "per line: hash of the prompt, what crossed the edges (where recorded), output, parsed "
            f"answer, verdict and reason. {RunFiles.items} has them uncut."
        )


Block = Text | Bullets | Claims | TableBlock | Picture | Code | Items


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    blocks: list[Block]


def render_html(title: str, sections: Sequence[Section]) -> str:
    """The page, with figures, style and tables embedded."""
    template = importlib.resources.files(__package__).joinpath("template.html")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(title=title, sections=sections)


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same as Markdown; figures are links into `figures/`."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *map(_markdown, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Claims(claims):
            lines = []
            for claim in claims:
                lines.append(f"- **{claim.verdict}**: {claim.statement}")
                lines += [f"  - {f.split}: {f.verdict}. {f.numbers}." for f in claim.findings]
            return "\n".join(lines)
        case TableBlock(table):
            return table.to_markdown()
        case Items():
            return block.summary
        case Picture(name, caption):
            return f"![{caption}]({RunFiles.figures}/{name}.png)\n\n{caption}"
        case Code(_, text, language):
            # The text cannot close a fence longer than its own ones.
            fence = "```"
            while fence in text:
                fence += "`"
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
