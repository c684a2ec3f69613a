"""The LoopLM baseline: a looped language model alone, with as many loops as rounds."""

import dataclasses
import json

import pytest
from teams import QUESTIONS, build_team, with_agents, write_naively

from rmas_jax.config import ConfigError, load_config
from rmas_jax.evaluation.answerer import answerers
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.loop_lm import load_loop_lm, team_of_one
from rmas_jax.prompts import load_prompts
from rmas_jax.runs.resolve import resolve
from rmas_jax.runs.run import run
from rmas_jax.topology import load_topology

MAX_TOKENS, ROUNDS = 6, (1, 2, 3)


def own(team):
    """The prompts of the team, by schedule."""
    return {"recursion": {role: member.template for role, member in team.members.items()}}


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def by_rounds(team_and_links):
    """Answers of the method at each number of rounds."""
    team, links = team_and_links
    found = answerers(team, links, links, ["loop_lm"], ROUNDS, Answering(MAX_TOKENS), own(team))
    return {answerer.rounds: answerer(QUESTIONS) for answerer in found}


def test_it_reads_the_answerers_first_prompt_with_as_many_loops_as_rounds(
    team_and_links, by_rounds
):
    """Against a decoder that has so many loops from the start, without cache and padding."""
    member = team_and_links[0].loop_lm
    assert member.agent.config.loops not in (1, 3)  # trained with another number
    for rounds in ROUNDS:
        config = dataclasses.replace(member.agent.config, loops=rounds)
        agent = member.agent.replace(decoder=type(member.agent.decoder)(config))
        alone = dataclasses.replace(
            team_and_links[0], members={"solver": dataclasses.replace(member, agent=agent)}
        )
        for answer in by_rounds[rounds]:
            text, tokens = write_naively(
                alone,
                "solver",
                answer.question,
                {"critic": ""},
                later=False,
                ends=member.end_tokens,
                max_tokens=MAX_TOKENS,
                slot_width=0,
            )
            assert (answer.text, answer.tokens, answer.steps) == (text, tokens, tokens)
    # The control: another number of loops gives other answers.
    assert by_rounds[1] != by_rounds[2] != by_rounds[3]


def test_weights_are_shared_and_the_teams_agents_do_not_count(team_and_links, by_rounds):
    team, links = team_and_links
    member = team.loop_lm
    assert team_of_one(team, 3).members["solver"].agent.params is member.agent.params
    lone = with_agents(team, {"solver": member.agent})  # another answerer of the team
    (answerer,) = answerers(lone, links, links, ["loop_lm"], [2], Answering(MAX_TOKENS), own(team))
    assert answerer(QUESTIONS) == by_rounds[2]
    with pytest.raises(ValueError, match="must have a loop_lm for the method loop_lm, got None"):
        team_of_one(dataclasses.replace(team, loop_lm=None), 1)


def test_a_model_that_is_not_looped_is_refused_before_its_weights_are_read(tmp_path):
    template = load_prompts("relay", load_topology("sequential").edges)["solver"]
    with pytest.raises(ConfigError, match=r"evaluation.loop_lm must be a looped .* which is qwen3"):
        load_loop_lm("embedded/planner", "solver", [template])


def test_a_run_measures_it_and_its_model_is_part_of_the_runs_identity(tmp_path):
    overrides = [
        f"output_dir={tmp_path}",
        "inner.steps=0",
        "outer.phases=[]",
        "evaluation.methods=[loop_lm]",
        "evaluation.rounds=[1,3]",
        "evaluation.gradient_batch_size=0",
        "evaluation.benchmarks=[{name: relay, splits: ['test[:6]']}]",
        "evaluation.batch_size=6",
        "runtime.compilation_cache=false",
    ]
    with pytest.raises(ConfigError, match=r"evaluation.loop_lm must be a directory or hub id"):
        resolve(load_config("quickstart", overrides))
    config = load_config("quickstart", [*overrides, "evaluation.loop_lm=embedded/looper"])
    finished = run(config)
    rows = finished.measured.results
    assert [(row["method"], row["rounds"], row["n"]) for row in rows] == [
        ("loop_lm", 1, 6),
        ("loop_lm", 3, 6),
    ]
    assert all(row["latent_steps"] == 0 for row in rows)
    assert all(row["steps_per_item"] == row["tokens_per_item"] for row in rows)
    identity = json.loads(finished.files.identity.read_text())
    assert all(len(digest) == 64 for digest in identity["loop_lm"])
    assert "loop_lm" in finished.files.markdown.read_text()
