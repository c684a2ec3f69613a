"""The engine: nothing that a request computes depends on its neighbours, or on when it came."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import jax
import numpy as np
import pytest
from engines import MAX_TOKENS, SETTINGS, ask, collect, question
from systems import CONFIGS, random_params
from teams import QUESTIONS, broken, talkative, with_agents

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_positions
from rmas_jax.agents.text_stream import TextStream
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.host.errors import InputError
from rmas_jax.models import Decoder
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.rounds import recursion
from rmas_jax.rounds.channels import LATENT, TEXT, LatentChannel
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.serving.engine import Engine, EngineError
from rmas_jax.serving.requests import (
    CANCELLED,
    LENGTH,
    STOP,
    BusyError,
    Request,
    RequestError,
    StageEvent,
    TextEvent,
)
from rmas_jax.serving.statistics import ANSWERED, FAILED, REFUSED

REQUESTS = 200
SENDERS = 8


def greedy_request(number: int) -> Request:
    """A request of many kinds; some of them in text, watched, or with several texts."""
    return Request(
        question=question(number),
        channel=TEXT if number % 25 == 7 else LATENT,
        rounds=1 + number % 3,
        max_tokens=1 + number % MAX_TOKENS,
        n=1 + (number % 11 == 3),
        is_watched=number % 20 == 5,
        nearest=number % 3,
        stop=("from",) if number % 5 == 0 else (),
        tolerance=0.5 if number % 7 == 4 and number % 25 != 7 else 0.0,
    )


def drawn_request(number: int) -> Request:
    """The same with draws."""
    return dataclasses.replace(
        greedy_request(number),
        temperature=(0.7, 1.0, 3.0)[number % 3],
        top_p=(1.0, 0.8)[number % 2],
        seed=number,
    )


def at_random_times(engine, requests):
    """The facts of each request; several senders send them at random times."""
    found = {}

    def send(numbers):
        tickets = {}
        for number in numbers:
            time.sleep(random.Random(number).random() / 50)
            tickets[number] = engine.submit(requests[number])
        found.update({number: collect(ticket) for number, ticket in tickets.items()})

    senders = [
        threading.Thread(target=send, args=(range(first, len(requests), SENDERS),))
        for first in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return [found[number].facts for number in range(len(requests))]


def test_requests_at_random_times_are_answered_as_one_after_another(engine):
    requests = [greedy_request(number) for number in range(REQUESTS)]
    # Neighbours that draw make no difference.
    drawn = [drawn_request(number) for number in range(0, REQUESTS, 4)]
    before = engine.statistics()
    alone = [collect(engine.submit(request)).facts for request in requests]
    drawn_alone = [collect(engine.submit(request)).facts for request in drawn]
    together = at_random_times(engine, requests + drawn)
    assert together[:REQUESTS] == alone and together[REQUESTS:] == drawn_alone
    assert {texts[0] for texts, *_ in alone if texts} != {""}
    reasons = {end[0] for _, _, ends, *_ in alone for end in ends.values()}
    assert reasons == {STOP, LENGTH}
    after = engine.statistics()
    assert after.compilations == 0
    assert after.batched - before.batched == 2 * (len(requests) + len(drawn))
    # Together they share batches.
    assert after.batches - before.batches < 1.6 * (len(requests) + len(drawn))


def test_statistics_add_up(engine):
    before = engine.statistics()
    found = [collect(engine.submit(greedy_request(number))) for number in range(12)]
    after = engine.statistics()
    for name in ("prompt_tokens", "message_tokens", "answer_tokens", "latents"):
        grown = getattr(after, name) - getattr(before, name)
        assert grown == sum(getattr(one.done, name) for one in found) > 0, name
    assert after.by_outcome[ANSWERED] - before.by_outcome[ANSWERED] == len(found)
    assert after.queued == after.running == 0 and after.rows == SETTINGS.rows
    assert after.seconds["rounds"] > before.seconds["rounds"]
    assert after.is_alive and after.compilations == before.compilations
    firsts = sum(len(one.ends) for one in found)  # that no step of the pool writes
    written = after.row_steps - before.row_steps
    assert written >= after.answer_tokens - before.answer_tokens - firsts > 0


@pytest.mark.parametrize("channel", [LATENT, TEXT])
def test_answers_are_those_of_an_answerer(engine, team_and_links, channel):
    method = {LATENT: "recursive_mas", TEXT: "recursive_text"}[channel]
    drawn = SamplingConfig(temperature=2.0, top_p=0.9)
    for how, n in ((SamplingConfig(), 1), (drawn, 3)):
        answering = Answering(MAX_TOKENS, how, rollouts=n)
        answerer = Answerer(*team_and_links, METHODS[method], 2, answering)
        for text in QUESTIONS:
            (answer,) = answerer([text], seed=5)
            found = ask(
                engine,
                text,
                channel=channel,
                n=n,
                seed=5,
                temperature=how.temperature,
                top_p=how.top_p,
            )
            assert tuple(found.texts.get(i, "") for i in range(n)) == answer.texts
            first = found.ends[0][1]  # the answerer counts the tokens of the first rollout
            assert found.done.message_tokens + first == answer.tokens


def test_texts_follow_from_the_seed_and_their_number(engine):
    draws = {"temperature": 3.0, "n": 3}
    first = ask(engine, seed=1, **draws)
    assert ask(engine, seed=1, **draws).facts == first.facts != ask(engine, seed=2, **draws).facts
    assert len(set(first.texts.values())) > 1
    alone = ask(engine, seed=1, temperature=3.0)
    assert alone.texts[0] == first.texts[0] and alone.tokens[0] == first.tokens[0]
    unseeded = [ask(engine, temperature=3.0).texts for _ in range(4)]
    assert any(texts != unseeded[0] for texts in unseeded)


def test_log_probabilities_are_those_of_the_agent(engine, team_and_links, monkeypatch):
    """By the definition: prompt and text are read at once, without a pool."""
    team, links = team_and_links
    member, text = team.members[team.system.topology.answerer], QUESTIONS[1]
    ids, given, add = [], [], TextStream.add

    def record(stream, tokens, logprobs):
        ids.extend(tokens)
        given.extend(logprobs)
        add(stream, tokens, logprobs)

    monkeypatch.setattr(TextStream, "add", record)
    ask(engine, text, rounds=2, temperature=2.0, seed=3)
    assert len(ids) > 3
    prompts, channel = team.encode([text]), LatentChannel(team.system, links)
    prompt = recursion.listen(team.system, team.agents, channel, prompts, rounds=2).prompt
    written = np.array([ids], np.int32)
    hidden, _ = read_positions(member.agent, prompt.followed_by(written, written >= 0))
    logits = member.agent.unembed(hidden[:, prompt.ids.shape[1] - 1 : -1])
    expected = jax.nn.log_softmax(logits)[0, np.arange(len(ids)), np.array(ids)]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)


def test_a_stop_string_ends_a_text_across_tokens(engine):
    for number in range(20):
        whole = ask(engine, question(number))
        if len(whole.tokens.get(0, ())) >= 4:
            break
    pieces = [piece for piece, _ in whole.tokens[0]]
    stop = (pieces[1] + pieces[2])[-len(pieces[2]) - 1 :][:2]  # over the border of two tokens
    cut = ask(engine, question(number), stop=("nowhere", stop.upper()))
    place = whole.texts[0].lower().find(stop.lower())
    assert place >= 0 and cut.texts.get(0, "") == whole.texts[0][:place].strip()
    reason, tokens = cut.ends[0]
    assert reason == STOP and tokens < whole.ends[0][1]
    assert "".join(piece for piece, _ in cut.tokens.get(0, ())).strip() == cut.texts.get(0, "")


def test_watched_stages_are_those_of_a_trace(engine, team_and_links):
    team, links = team_and_links
    found = ask(engine, QUESTIONS[1], rounds=2, is_watched=True, nearest=2)
    channel, prompts = LatentChannel(team.system, links), team.encode([QUESTIONS[1]])
    trace = trace_rounds(team.system, team.agents, channel, prompts, rounds=2)
    assert [(stage.round, stage.role) for stage in found.stages] == [
        (stage.round + 1, stage.role) for stage in trace.stages
    ]
    for event, stage in zip(found.stages, trace.stages, strict=True):
        assert event.sent.keys() == stage.sent.keys() and event.text is None
        for name, crossing in event.sent.items():
            norms = np.linalg.norm(stage.sent[name][0], axis=-1)
            np.testing.assert_allclose(crossing.norms, norms, rtol=1e-4)
            assert [len(tokens) for tokens in crossing.nearest] == [2] * len(norms)
    changes = [stage.change for stage in found.stages]
    assert [change is not None for change in changes] == [False] * 4 + [True]
    np.testing.assert_allclose(changes[-1], trace.change[1][0], rtol=1e-4)
    unwatched = ask(engine, QUESTIONS[1], rounds=2)
    assert found.texts == unwatched.texts and found.done.latents == unwatched.done.latents > 0
    assert not ask(engine, QUESTIONS[1], is_watched=True).stages[0].sent["planner->critic"].nearest


def test_watched_messages_are_events(engine):
    found = ask(engine, QUESTIONS[1], channel=TEXT, rounds=2, is_watched=True)
    roles = ["planner", "critic", "solver"]
    assert [stage.role for stage in found.stages] == [*roles, *roles[:2]]
    assert sum(stage.tokens for stage in found.stages) == found.done.message_tokens > 0
    assert found.done.latents == 0 and any(stage.text for stage in found.stages)


def test_rounds_stop_early_for_one_request(engine):
    tight, loose = (
        ask(engine, QUESTIONS[1], rounds=8, tolerance=tolerance) for tolerance in (0.0, 1e6)
    )
    assert tight.done.rounds == 8 and loose.done.rounds == 2
    assert loose.texts == ask(engine, QUESTIONS[1], rounds=2).texts
    assert tight.done.prompt_tokens > loose.done.prompt_tokens


def test_the_length_of_a_text(engine):
    found = ask(engine, question(9), max_tokens=3)
    whole = ask(engine, question(9))
    assert found.ends[0] in ((LENGTH, 3), whole.ends[0])
    assert whole.texts.get(0, "").startswith(found.texts.get(0, ""))


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
