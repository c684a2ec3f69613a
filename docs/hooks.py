"""Pages of the site that follow from the code: the configuration, the API, the notebooks.

mkdocs calls the functions `on_*`; see `hooks` in mkdocs.yml.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rmas_jax
from rmas_jax.config import field_help

CONFIGURATION = """# The run configuration

A run is one YAML file, or the name of one that ships with the package: `quickstart`. It is read
strictly: an unknown key, a wrong type or a value out of range ends in one message. Any field can be
changed on the command line, items of lists by their number:

```
rmas run --config quickstart --set name=longer --set outer.phases.0.steps=600
```

Paths in a file count from its folder; `output_dir` and paths in `--set` count from the current one.

This page is made from `rmas_jax.config.field_help`, which `rmas run --help` shows as well.

| field | must be | default | meaning |
|---|---|---|---|
"""


def public_modules() -> list[str]:
    """Dotted names of all modules of the package, without those that a leading _ makes private."""
    found = pkgutil.walk_packages(rmas_jax.__path__, "rmas_jax.")
    names = ("rmas_jax", *(module.name for module in found))
    return sorted(name for name in names if "._" not in name)


def api_pages() -> dict[str, str]:
    """Path of a page -> its Markdown: one page for each room, every public module on one."""
    pages: dict[str, str] = {}
    for module in public_modules():
        room = ".".join(module.split(".")[:2])
        page = f"reference/{room.removeprefix('rmas_jax.')}.md"
        pages[page] = pages.get(page, f"# {room}\n") + f"\n::: {module}\n"
    return pages


def configuration_page() -> str:
    """Every field of a run's configuration, as a table."""
    lines = field_help().splitlines()
    return CONFIGURATION + "".join(map(_row, lines[0::2], lines[1::2]))


def _row(field: str, meaning: str) -> str:
    name, _, rest = field.partition(": ")
    allowed, _, default = rest.rpartition(" (")
    cells = (
        f"`{name}`",
        allowed,
        default.removesuffix(")").removeprefix("default "),
        meaning.strip(),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown; its outputs are left out."""

    def cells() -> Iterator[str]:
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"

    return "\n\n".join(cells()) + "\n"


def on_config(config: Any) -> Any:
    """Adds the pages of the API to the section Reference."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.extend({page.rpartition("/")[2][:-3]: page} for page in api_pages())
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages; in the repository they lead to the files."""
    return re.sub(r"(\(\S*notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to those of the folder."""
    from mkdocs.structure.files import File  # here: the tests import this module without mkdocs

    pages = {**api_pages(), "reference/configuration.md": configuration_page()}
    for path in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        page = notebook_page(json.loads(path.read_text()))
        pages[f"notebooks/{path.stem}.md"] = f"{page}\n[Download the notebook]({path.name})\n"
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files
