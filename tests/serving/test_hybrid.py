"""An answerer with linear layers, whose states continue from the shared start of its prompts."""

import dataclasses

import pytest
from engines import MAX_TOKENS, SETTINGS, ask, collect, question
from systems import LINEAR, random_params
from teams import talkative

from rmas_jax.agents.agent import Agent
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.models import Decoder
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.requests import Request


@pytest.mark.slow  # a minute and a half
def test_answers_are_those_of_an_answerer(team_and_links):
    team, links = team_and_links
    member = team.members["solver"]
    config = dataclasses.replace(LINEAR, width=member.agent.width, vocab_size=len(member.tokenizer))
    params = talkative(random_params(config, 3), member.tokenizer)
    member = dataclasses.replace(member, agent=Agent(Decoder(config), params))
    team = dataclasses.replace(team, members={**team.members, "solver": member})
    engine = Engine(team, links, dataclasses.replace(SETTINGS, channels=("latent",)))
    engine.warm()
    engine.start()
    answerer = Answerer(team, links, METHODS["recursive_mas"], 2, Answering(MAX_TOKENS))
    questions = [question(number) for number in range(12)]
    tickets = [engine.submit(Request(question=text)) for text in questions]
    together = [collect(ticket).facts for ticket in tickets]
    assert together == [ask(engine, text).facts for text in questions]
    assert engine.statistics().compilations == 0
    expected = [answer.text for answer in answerer(questions)]
    assert [texts.get(0, "") for texts, *_ in together] == expected
    assert len(set(expected)) > 1
    engine.close()
