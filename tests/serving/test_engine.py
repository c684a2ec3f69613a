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
from teams import QUESTIONS

from rmas_jax.agents.reading import read_positions
from rmas_jax.agents.text_stream import TextStream
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.rounds import recursion
from rmas_jax.rounds.channels import LATENT, TEXT, LatentChannel
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.serving.requests import (
    LENGTH,
    STOP,
    Request,
)
from rmas_jax.serving.statistics import ANSWERED

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
