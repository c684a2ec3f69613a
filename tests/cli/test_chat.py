"""A conversation in the terminal."""

from __future__ import annotations

import pytest
from served import QUICKSTART, aligned_links

from rmas_jax.cli.chat import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.requests import BusyError, FailedEvent
from rmas_jax.serving.tickets import Ticket

LINES = ("What becomes of Fumes Dabil?", "", "And then?", "/new", "What becomes of Fumes Dabil?")


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    return aligned_links(tmp_path_factory.mktemp("links"))


@pytest.fixture
def questions(monkeypatch):
    """What the engine is asked."""
    asked = []
    submit = Engine.submit

    def noted(self, request):
        asked.append(request.question)
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", noted)
    return asked


def chat(monkeypatch, links, lines, *arguments):
    given = iter(lines)

    def line(prompt=""):
        if (found := next(given, None)) is None:
            raise EOFError
        if found is KeyboardInterrupt:
            raise found
        return found

    monkeypatch.setattr("builtins.input", line)
    sizes = ("--no-warm", "--max-tokens", "8", "--rounds", "1")
    return main(["--config", QUICKSTART, "--links", links, *sizes, *arguments])


def test_a_conversation_is_kept_until_it_is_forgotten(monkeypatch, capsys, links, questions):
    assert chat(monkeypatch, links, LINES, "--system", "Be short.") == 0
    first, second, third = questions
    assert first == third == f"System: Be short.\n\nUser: {LINES[0]}"
    assert second.startswith(f"{first}\n\nAssistant: ") and second.endswith("User: And then?")
    answer = second.partition("Assistant: ")[2].partition("\n\nUser: ")[0]
    shown = capsys.readouterr().out
    assert answer and shown.count(answer) >= 2 and shown.count("[1 rounds, ") == 3


def test_what_cannot_be_asked_is_said_and_forgotten(monkeypatch, capsys, links, questions):
    assert chat(monkeypatch, links, ["a " * 5000, KeyboardInterrupt, "Who?", "/end", "no"]) == 0
    assert len(questions) == 2 and questions[1] == "Who?"
    assert capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_ends_an_answer_alone(monkeypatch, capsys, links):
    def interrupted(self):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("rmas_jax.serving.tickets.Ticket.events", interrupted)
    assert chat(monkeypatch, links, ["Who?", "Who?"]) == 0
    assert capsys.readouterr().out.count("[ended]") == 2


def test_an_answer_that_fails_is_said_and_forgotten(monkeypatch, capsys, links, questions):
    events = Ticket.events

    def failing(self):
        if len(questions) == 1:
            return iter([FailedEvent("agent solver: NaN")])
        return events(self)

    monkeypatch.setattr(Ticket, "events", failing)
    assert chat(monkeypatch, links, ["Who?", "And who?"]) == 0
    assert questions == ["Who?", "And who?"]
    assert "error: agent solver: NaN" in capsys.readouterr().err


def test_an_engine_that_has_stopped_is_said(monkeypatch, capsys, links):
    def refuse(self, request):
        raise BusyError("the engine takes no more requests", 1.0)

    monkeypatch.setattr(Engine, "submit", refuse)
    assert chat(monkeypatch, links, ["Who?"]) == 0
    assert "error: the engine takes no more requests" in capsys.readouterr().err


def test_bad_input_is_named(monkeypatch, capsys, links):
    assert chat(monkeypatch, links, [], "--rows", "0") == BAD_INPUT
    assert "--rows must be at least 1" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert chat(monkeypatch, links, []) == BAD_INPUT
    assert "standard input must hold messages, is closed" in capsys.readouterr().err
