"""The engine: requests that are cancelled, refused or fail, and an engine that ends."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
from engines import MAX_TOKENS, SETTINGS, ask, collect, question
from systems import CONFIGS, random_params
from teams import QUESTIONS, broken, talkative, with_agents

from rmas_jax.agents.agent import Agent
from rmas_jax.host.errors import InputError
from rmas_jax.models import Decoder
from rmas_jax.rounds.channels import LATENT, TEXT
from rmas_jax.serving.engine import Engine, EngineError
from rmas_jax.serving.requests import (
    CANCELLED,
    BusyError,
    Request,
    RequestError,
    StageEvent,
    TextEvent,
)
from rmas_jax.serving.statistics import FAILED, REFUSED


def test_cancelled_requests_free_their_places(team_and_links, engine):
    waiting = Engine(*team_and_links, SETTINGS)
    queued = waiting.submit(Request(question="from a to b"))
    other = waiting.submit(Request(question="from a to b"))
    queued.cancel()
    queued.cancel()
    waiting.start()
    assert collect(queued).is_cancelled and collect(other).done
    waiting.close()
    before = engine.statistics().by_outcome[CANCELLED]
    for kind, wanted in ((StageEvent, {"is_watched": True}), (TextEvent, {"n": 3})):
        for number in range(8):  # some texts end at once
            ticket = engine.submit(Request(question=question(number), rounds=3, **wanted))
            events = []
            for event in ticket.events():
                events.append(event)
                if isinstance(event, kind):
                    ticket.cancel()
            assert isinstance(events[0], StageEvent) == (kind is StageEvent)
    assert ask(engine).done
    after = engine.statistics()
    assert after.running == after.queued == 0
    assert after.by_outcome[CANCELLED] - before >= 9  # all that were watched, and others


def test_a_listener_hears_what_came_before_it(engine):
    ticket = engine.submit(Request(question=QUESTIONS[1], is_watched=True))
    while engine.statistics().running or engine.statistics().queued or not ticket._early:
        time.sleep(0.01)
    heard, ended = [], threading.Event()

    def listen(event):
        heard.append(event)
        if type(event).__name__ == "DoneEvent":
            ended.set()

    ticket.listen(listen)
    assert ended.wait(60)
    assert isinstance(heard[0], StageEvent)


def test_a_listener_that_fails_cancels_its_request_alone(engine):
    def fail(event):
        raise RuntimeError("gone")

    before = engine.statistics().by_outcome[CANCELLED]
    engine.submit(Request(question=QUESTIONS[1], rounds=3, is_watched=True)).listen(fail)
    assert ask(engine).done
    while engine.statistics().by_outcome[CANCELLED] == before:
        time.sleep(0.01)


def test_a_full_queue_refuses(team_and_links):
    engine = Engine(*team_and_links, dataclasses.replace(SETTINGS, queue=2))
    tickets = [engine.submit(Request(question="a")) for _ in range(2)]
    with pytest.raises(BusyError, match="the queue is full: 2 requests wait") as caught:
        engine.submit(Request(question="a"))
    assert 1 <= caught.value.retry_after <= 600
    assert engine.statistics().by_outcome[REFUSED] == 1 and engine.statistics().queued == 2
    engine.close(finish=False)
    assert all(collect(ticket).is_cancelled for ticket in tickets)
    with pytest.raises(BusyError, match="takes no more"):
        engine.submit(Request(question="a"))
    assert not engine.statistics().is_alive


@pytest.mark.parametrize("finish", [True, False])
def test_closing(team_and_links, finish):
    engine = Engine(*team_and_links, SETTINGS)
    tickets = [engine.submit(Request(question=question(i), rounds=3)) for i in range(12)]
    engine.start()
    engine.close(finish=finish)
    engine.close()
    found = [collect(ticket) for ticket in tickets]
    assert all(one.done if finish else one.done or one.is_cancelled for one in found)
    if not finish:
        assert any(one.is_cancelled for one in found)
    with pytest.raises(BusyError, match="takes no more requests"):
        engine.submit(Request(question="a"))


def test_a_huge_question_is_refused_without_being_encoded(engine, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("it is encoded")

    monkeypatch.setattr("rmas_jax.serving.prompts.stage_tokens", fail)
    for text in ("a" * 1_000_000, {"question": "a " * 500_000}):
        with pytest.raises(RequestError, match="at most 80 tokens, got 1,000,000 characters"):
            engine.submit(Request(question=text))


def test_too_long_a_question(engine):
    with pytest.raises(RequestError, match=r"at most 80 tokens in each block .* got 2") as caught:
        ask(engine, "parcel " * 200)
    assert caught.value.field == "question"
    assert ask(engine).done


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channel", "softmax", "channel must be one of latent, text, got 'softmax'"),
        ("rounds", 0, "rounds must be a whole number from 1 to 16, got 0"),
        ("rounds", 17, "got 17"),
        ("max_tokens", MAX_TOKENS + 1, f"from 1 to {MAX_TOKENS}, got {MAX_TOKENS + 1}"),
        ("n", 5, "n must be a whole number from 1 to 4, got 5"),
        ("nearest", 4, "nearest must be a whole number from 0 to 3, got 4"),
        ("seed", -1, "seed must be"),
        ("seed", True, "seed must be"),
        ("temperature", -0.1, "temperature must be a number of at least 0, got -0.1"),
        ("temperature", float("nan"), "temperature must be"),
        ("top_p", 1.5, "top_p must be a number from 0 to 1, got 1.5"),
        ("tolerance", -1.0, "tolerance must be"),
        ("stop", ("",), "stop must be at most 64 texts of 1 to 1,000 characters"),
        ("stop", ("x",) * 65, "stop must be"),
        ("question", {"text": "a"}, "question must have the texts question, got"),
        ("question", "\ud800", "lone surrogates"),
    ],
)
def test_values_that_are_refused(engine, field, value, message):
    with pytest.raises(RequestError, match=message) as caught:
        engine.submit(Request(**{"question": "a", field: value}))
    assert caught.value.field == field


def test_a_tolerance_in_text_is_refused(engine):
    with pytest.raises(RequestError, match="tolerance must be 0 where text crosses"):
        engine.submit(Request(question="a", channel=TEXT, tolerance=0.1))


def test_markers_and_slots_in_a_question_are_plain_text(engine):
    found = ask(engine, "<|im_end|> {planner} \ue000planner\ue001 <eos>")
    assert found.done and not found.failed


def with_damage(team, role):
    """The team, whose agent of a role has no finite embedding of a word; and that agent whole."""
    member = team.members[role]
    config = dataclasses.replace(
        CONFIGS[role], vocab_size=len(member.tokenizer), tie_embeddings=False
    )
    params = talkative(random_params(config, 3), member.tokenizer)
    whole = Agent(Decoder(config), params)
    (token,) = member.tokenizer(" to", add_special_tokens=False)["input_ids"]
    return with_agents(team, {role: broken(whole, token)}), with_agents(team, {role: whole})


@pytest.mark.parametrize("role", ["critic", "solver"])
def test_numbers_that_are_not_finite_fail_their_request_alone(team_and_links, role):
    team, links = team_and_links
    damaged, whole = (Engine(of, links, SETTINGS) for of in with_damage(team, role))
    damaged.start()
    whole.start()
    questions = ["from a to b", "where does", "a b a", "a to", "the parcel", "b a"]
    failed = 0
    for channel in (LATENT, TEXT):
        for is_watched in (False, True):
            how = {"channel": channel, "rounds": 1, "is_watched": is_watched}
            tickets = [damaged.submit(Request(question=q, **how)) for q in questions]
            for text, ticket in zip(questions, tickets, strict=True):
                found, expected = collect(ticket), ask(whole, text, **how)
                written = [piece for of in expected.tokens.values() for piece, _ in of]
                if "to" in text.split():
                    assert f"agent {role}" in found.failed and "NaN" in found.failed
                elif channel == LATENT and " to" not in written:
                    assert found.facts == expected.facts  # also in the row of a text that failed
                failed += bool(found.failed)
    assert failed >= 8 and damaged.statistics().is_alive
    assert damaged.statistics().by_outcome[FAILED] == failed
    damaged.close()
    whole.close()


@pytest.mark.parametrize("part, name", [("_rows", "write"), ("_rows", "begin"), ("_rounds", "of")])
def test_an_unexpected_error_ends_all(team_and_links, monkeypatch, caplog, part, name):
    engine = Engine(*team_and_links, SETTINGS)
    tickets = [engine.submit(Request(question=question(i))) for i in range(6)]

    def fail(*arguments, **options):
        raise RuntimeError("out of memory")
        yield

    def fail_at_once(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(getattr(engine, part), name, fail if name == "of" else fail_at_once)
    engine.start()
    failed = [collect(ticket) for ticket in tickets]
    assert any(
        "the engine has stopped: RuntimeError: out of memory" in (x.failed or "") for x in failed
    )
    assert all(one.failed or one.done for one in failed)
    engine.close()
    assert not engine.statistics().is_alive
    with pytest.raises(BusyError, match="takes no more requests"):
        engine.submit(Request(question="a"))


@pytest.mark.parametrize("role", ["critic", "solver"])
def test_an_engine_of_damaged_agents_does_not_become_warm(team_and_links, role):
    team, links = team_and_links
    damaged = with_agents(team, {role: broken(team.agents[role])})
    settings = dataclasses.replace(SETTINGS, widths=(16,), channels=(LATENT,))
    engine = Engine(damaged, links, settings)
    with pytest.raises(InputError, match=f"agent {role}.*NaN"):
        engine.warm()
    assert not engine.is_warm


def test_after_an_error_no_further_kind_is_tried(team_and_links, monkeypatch):
    settings = dataclasses.replace(SETTINGS, widths=(16, 32, 48), channels=(LATENT, TEXT))
    engine, tried = Engine(*team_and_links, settings), []

    def fail(request, width):
        tried.append((request.channel, width))
        time.sleep(0.1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "_try", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.warm()
    assert len(tried) < 6 and not engine.is_warm


def test_links_are_needed_where_latents_cross(team_and_links):
    team, _ = team_and_links
    with pytest.raises(EngineError, match="links must be given for the channel latent, got None"):
        Engine(team, None, SETTINGS)
    Engine(team, None, dataclasses.replace(SETTINGS, channels=(TEXT,)))
