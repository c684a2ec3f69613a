"""What the documentation names exists: modules, files, tests, links, commands, fields of a run."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from rmas_jax.cli.__main__ import COMMANDS
from rmas_jax.config import field_help, load_benchmark_config
from rmas_jax.data import Example
from rmas_jax.evaluation import graders
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark, evaluate
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.evaluation.methods import METHODS, chosen_methods
from rmas_jax.host.command_line import Parser
from rmas_jax.reporting import tables
from rmas_jax.rounds.channels import CHANNELS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def module_at(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = module_at(DOCS / "hooks.py")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("", "docs", "experiments", "tpu")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
} | {
    f"docs/notebooks/{path.stem}.md": HOOKS.notebook_page(json.loads(path.read_text()))
    for path in NOTEBOOKS
}
# A changelog tells of what was, too.
CURRENT = {page: text for page, text in PAGES.items() if page != "CHANGELOG.md"}
GENERATED = {f"docs/{page}" for page in (*HOOKS.api_pages(), "reference/configuration.md")}
FIELDS = {line.partition(":")[0] for line in field_help().splitlines()[0::2]}


def exists_in_python(name: str) -> bool:
    """Whether a dotted name leads to a module, to something in one, or to a field of a class."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise  # something that the module needs is not there
            continue
        for part in parts[count:]:
            if part in getattr(found, "__annotations__", ()):
                return True
            if (found := getattr(found, part, None)) is None:
                return False
        return True
    return False


def lacking(pattern: str, exists) -> list[tuple[str, str]]:
    """Page and name of everything that a pattern finds and that does not exist."""
    return [
        (page, name)
        for page, text in CURRENT.items()
        for name in sorted({match[1] for match in re.finditer(pattern, text, re.MULTILINE)})
        if not exists(name)
    ]


def test_a_name_that_does_not_exist_is_found():
    assert exists_in_python("rmas_jax.topology.System.width")
    assert exists_in_python("rmas_jax.topology.System.latent_steps")
    for name in ("rmas_jax.nowhere", "rmas_jax.links.nothing", "rmas_jax.topology.System.nothing"):
        assert not exists_in_python(name)


def test_dotted_names_exist():
    assert not lacking(r"\b(rmas_jax(?:\.[A-Za-z_]\w*)+)", exists_in_python)


def test_imports_in_examples_exist():
    missing = []
    for page, text in CURRENT.items():
        for code in re.findall(r"^( *)```python\n(.*?)```", text, re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(re.sub(f"(?m)^{code[0]}", "", code[1]))):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("rmas_jax"):
                    names = (f"{node.module}.{alias.name}" for alias in node.names)
                    missing += [(page, name) for name in names if not exists_in_python(name)]
    assert not missing


def test_paths_exist():
    def exists(path: str) -> bool:
        return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()

    places = r"(?<![\w/.-])((?:rmas_jax|experiments|docs|tests|tpu)/(?:[\w.*-]+/?)*[\w*])"
    assert not lacking(places, exists)


def test_tests_that_pages_name_exist():
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {name for text in texts.values() for name in re.findall(r"\bdef (test_\w+)", text)}
    others = {
        "test_unseen_entities",
        "test_imports",
        "test_list",
        "test_share",
    }  # splits, columns, fields

    def exists(name: str) -> bool:
        file, _, test = name.partition("::")
        paths = [path for path in (ROOT / file, ROOT / "tests" / file) if path in texts]
        return bool(paths) and f"def {test}" in texts[paths[0]]

    assert not lacking(r"(?<![\w/])((?:\w+/)*test_\w+\.py(?:::\w+)?)\b", exists)
    assert not lacking(r"(?<![\w/.])(test_\w+)\b(?!\.py|\.\.\.)", (tests | others).__contains__)
    # Names that a page shortens, as in test_of_something_...
    assert not lacking(
        r"(?<![\w/.])(test_\w+_)\.\.\.", lambda start: any(name.startswith(start) for name in tests)
    )


def test_links_exist():
    missing = []
    for page, text in PAGES.items():
        text = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)", text):
            path = (ROOT / page).parent / target
            known = path.resolve().relative_to(ROOT).as_posix() in {*GENERATED, *PAGES}
            if not known and not path.exists():
                missing.append((page, target))
    assert not missing


def test_commands_exist():
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert not lacking(r"(?:^|`)\s*rmas\s([a-z][\w-]*)", COMMANDS.__contains__)
    assert not lacking(r"(?:^|`)\s*make\s([a-z]+)", targets.__contains__)


class ParsedError(Exception):
    """A command line was parsed; its command goes no further."""


@pytest.fixture
def is_parsed(monkeypatch):
    """Whether a command line is one that the command's own parser takes."""
    parse_args = Parser.parse_args

    def parse_alone(self, *arguments):
        parse_args(self, *arguments)
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", parse_alone, raising=False)

    def call(line: str) -> bool:
        _, command, *arguments = shlex.split(line, comments=True)
        module = importlib.import_module(f"rmas_jax.cli.{COMMANDS[command][0]}")
        try:
            module.main(arguments)
        except ParsedError:
            return True
        except SystemExit as end:
            return end.code == 0  # --help
        raise AssertionError(f"{line} ran")

    return call


def command_lines(text: str) -> list[str]:
    """The lines of a page that call `rmas`, with arguments: in blocks and between backticks."""
    blocks = "\n".join(re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^ *(rmas [a-z].*)", blocks.replace("\\\n", " "), re.MULTILINE)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return lines + re.findall(r"`(rmas\s+[a-z][\w-]*\s[^`]+)`", rest)


def test_command_lines_that_do_not_parse_are_found(is_parsed):
    page = "`rmas ask\n--inspect 2 Q` `rmas plan`\n```\nrmas run \\\n  --config A # why\n```\n"
    assert [shlex.split(line) for line in command_lines(page)] == [
        ["rmas", "run", "--config", "A", "#", "why"],
        ["rmas", "ask", "--inspect", "2", "Q"],
    ]
    assert [is_parsed(line) for line in command_lines(page)] == [True, False]  # no --config
    assert not is_parsed("rmas topology mixture --nothing") and is_parsed("rmas convert --help")


def test_command_lines_parse(is_parsed):
    # docs/inputs names an option of a command, not a command line.
    lines = {
        (page, line)
        for page, text in CURRENT.items()
        if not page.startswith("docs/inputs/")
        for line in command_lines(text)
    }
    assert ("README.md", "rmas run --config quickstart") in lines
    assert not [(page, line) for page, line in sorted(lines) if not is_parsed(line)]


def test_fields_of_a_run_exist():
    def exists(name: str) -> bool:
        name = re.sub(r"\.\d+\b", ".N", name)
        is_free = any(name.startswith(f"{field}.") for field in ("system.agents", "data.files"))
        return is_free or any(f"{field}.".startswith(f"{name}.") for field in FIELDS)

    sections = "system|data|inner|outer|evaluation|runtime"
    assert not lacking(rf"(?:`|--set \"?)((?:{sections})\.\w+(?:\.\w+)*)(?=[`=:])", exists)


def test_every_public_module_is_in_the_reference():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "rmas_jax").rglob("*.py")
        if not path.name.startswith("_") or path.name == "__init__.py"
    }
    shown = re.findall(r"^::: (\S+)$", "".join(HOOKS.api_pages().values()), re.MULTILINE)
    assert sorted(shown) == sorted(modules)  # none twice


def test_every_field_of_a_run_is_in_the_reference():
    rows = re.findall(r"^\| `([\w.]+)` \|", HOOKS.configuration_page(), re.MULTILINE)
    assert set(rows) == FIELDS and "outer.phases.N.latents" in rows
    for row in HOOKS.configuration_page().splitlines():
        if row.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def run_examples(page: str) -> dict:
    """What the Python of a page defines."""
    names: dict = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL))
    exec(compile(code, page, "exec"), names)
    return names


@pytest.fixture
def channel_page(monkeypatch):
    """What the page on channels defines; takes out of the tables what it adds."""
    for table in (CHANNELS, METHODS):
        monkeypatch.setitem(table, "rounded", None)
    return run_examples("docs/how-to/channels.md")


def test_the_channel_of_the_how_to_runs(channel_page):
    names = channel_page
    team, received = names["team"], names["received"]
    exact = received(names["exact"], team.agents, names["prompts"])
    errors = [np.abs(names[name] - exact)[0].mean() for name in ("coarse", "fine")]  # round 1
    assert errors[0] > 0.1 > errors[1] > 0 and exact.shape[:2] == (2, 1)
    assert received._cache_size() == 2  # for the exact channel and the rounded one


def test_the_channel_of_the_how_to_is_a_method_of_an_evaluation(channel_page, tmp_path):
    names = channel_page
    team, links = names["team"], names["links"]
    questions = ["What has become of the phrase Amor Roma after two gates?", "Where is it?"]
    benchmark = LoadedBenchmark(
        name="relay",
        version="1",
        grader=graders.GRADERS["relay"],
        splits={"test": [Example(q, q, "Bada Kor, no gates left") for q in questions]},
        prompts={role: member.template for role, member in team.members.items()},
        answering=Answering(max_tokens=4),
    )
    rows = evaluate(
        team,
        links,
        links,
        [benchmark],
        tmp_path,
        methods=chosen_methods(["rounded", "recursive_mas"]),
        rounds=(2,),
        batch_size=2,
        seeds=(0,),
        progress=False,
    )
    assert [(row["method"], row["rounds"], row["n"]) for row in rows] == [
        ("rounded", 2, 2),
        ("recursive_mas", 2, 2),
    ]
    assert [row["latent_steps"] for row in rows] == [team.system.latent_steps] * 2
    assert tables.method_table(rows).rows[-1] == (
        "rounded",
        "latent, rounded",
        "latents in steps of 0.5",
    )
    # What reaches the answerer in the last round is what the rounded channel sends.
    answerer = Answerer(team, links, METHODS["rounded"], rounds=2)
    received = answerer.listen(names["prompts"]).prompt.received
    exact = names["received"](names["exact"], team.agents, names["prompts"])
    gaps = [np.abs(received - x[-1]).mean() for x in (names["coarse"], exact)]
    assert gaps[0] < 0.1 * gaps[1]  # rounding may differ between programs at a few numbers


def test_the_grader_of_the_how_to_grades(monkeypatch):
    monkeypatch.setattr(graders, "GRADERS", dict(graders.GRADERS))
    run_examples("docs/how-to/benchmarks-and-graders.md")
    grader = graders.find_grader("yes_no", where="data.grader")
    yes = Example("1", "?", "Yes")
    assert grader("I think so: yes.", yes) == compared("yes", True)
    assert grader("no", yes) == compared("no", False)
    assert grader("perhaps", yes) == compared(None, False)


def test_the_benchmarks_of_the_how_to_are_some(tmp_path):
    page = PAGES["docs/how-to/benchmarks-and-graders.md"]
    found = []
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        (tmp_path / "mine.yaml").write_text(text)
        found.append(load_benchmark_config(tmp_path / "mine.yaml"))
    sums, benchmark = found
    assert sums.data.generators == {"chain_sum": 200}
    assert benchmark.name == "letters" and benchmark.data.columns == {"answer": "label"}
    assert benchmark.data.files == {"test": str(tmp_path / "questions.jsonl")}
