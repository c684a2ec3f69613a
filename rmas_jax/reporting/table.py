"""A table of formatted text, for Markdown, HTML and the terminal."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
from collections.abc import Sequence

TERMINAL_WIDTH = 100
ABSENT = "-"
# A cell with an interval: +1.0 [-0.5, +2.5], and a star where the table marks such values.
WITH_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\](\*?)")
NUMBER = re.compile(r"([+-]?[\d,]+(?:\.\d+)?)x?")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of formatted text; the first `text_columns` are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""
    name: str = ""  # of its file; words

    @property
    def stem(self) -> str:
        """The stem of its file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def to_csv(self) -> str:
        """The same values as CSV: an interval takes columns of its own, an absent value is empty.

        Numbers have no thousands separators, and ratios no x.
        """
        header: list[str] = []
        columns: list[list[str]] = []
        for i, name in enumerate(self.header):
            cells = [row[i] for row in self.rows]
            found = [None if self._is_text(i) else WITH_INTERVAL.fullmatch(x) for x in cells]
            parts = [
                match.groups() if match else (x,) for match, x in zip(found, cells, strict=True)
            ]
            suffixes = ["", " low", " high"] if any(found) else [""]
            if any(match and match[4] for match in found):
                suffixes.append(" mark")
            header += [name + suffix for suffix in suffixes]
            for k in range(len(suffixes)):
                column = [part[k] if k < len(part) else "" for part in parts]
                columns.append(column if self._is_text(i) else list(map(_plain, column)))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue()

    def to_markdown(self) -> str:
        """A GitHub table under a bold title."""
        rule = ["---" if self._is_text(i) else "---:" for i in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n{body}{note}"

    def to_html(self) -> str:
        """A `<table>` with caption; cells are escaped."""

        def line(cells: Sequence[str], tag: str) -> str:
            kinds = ("text" if self._is_text(i) else "number" for i in range(len(cells)))
            inner = (
                f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>'
                for kind, cell in zip(kinds, cells, strict=True)
            )
            return f"<tr>{''.join(inner)}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        note = f'\n<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="table"><table>\n<caption>{html.escape(self.title)}</caption>\n'
            f"<thead>{line(self.header, 'th')}</thead>\n"
            f"<tbody>\n{body}\n</tbody></table></div>{note}"
        )

    __html__ = to_html  # jinja2 treats it as escaped HTML

    def to_text(self, width: int = TERMINAL_WIDTH) -> str:
        """Aligned columns; cuts the first one if a line would exceed `width`."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        widths[0] = min(widths[0], max(8, width - sum(widths[1:]) - 2 * (len(widths) - 1)))

        def line(cells: Sequence[str]) -> str:
            first = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "…"
            padded = (
                cell.ljust(size) if self._is_text(i) else cell.rjust(size)
                for i, (cell, size) in enumerate(zip((first, *cells[1:]), widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * size for size in widths)
        return "\n".join([self.title, line(self.header), rule, *map(line, self.rows)])

    def _is_text(self, column: int) -> bool:
        return column < self.text_columns


def _plain(cell: str) -> str:
    """A formatted number without its formatting; other text as it is."""
    if cell == ABSENT:
        return ""
    number = NUMBER.fullmatch(cell)
    return number[1].replace(",", "") if number else cell
