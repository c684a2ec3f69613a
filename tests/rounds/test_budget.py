"""FLOPs per item of each method against a count stage by stage, one row at a time."""

import numpy as np
import pytest
from systems import LATENT_STEPS
from teams import QUESTIONS, build_team

from rmas_jax.config import SweepConfig
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.models.flops import logit_flops, read_flops
from rmas_jax.prompts import split_template, take
from rmas_jax.rounds.budget import (
    GIVEN,
    NOTHING,
    OWN,
    SENT,
    latent_flops,
    latent_turns,
    steps_before_answer,
)
from rmas_jax.topology import load_topology

MAX_TOKENS = 5
ORDER = ("planner", "critic", "solver")


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


def answerer_of(team_and_links, name, rounds=1, role=None):
    team, links = team_and_links
    return Answerer(team, links, METHODS[name], rounds, Answering(MAX_TOKENS), role)


def prompt_length(team, role, question, *, later, slots):
    """Positions of a whole prompt with so many in its slot."""
    member = team.members[role]
    prompt = member.template
    parts = split_template(member.tokenizer, prompt, prompt.later if later else prompt.first)
    texts = [part.replace("\ue000question\ue001", question) for part in parts[0::2]]
    ids = [member.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return sum(map(len, ids)) + slots * (len(parts) > 1)


def turn(team, role, question, prefix, *, later, slots, more):
    """A prompt read after its prefix, and `more` positions after it."""
    body = prompt_length(team, role, question, later=later, slots=slots) - prefix
    return float(read_flops(team.agents[role].config, body + more, prefix))


def link_products(config):
    """Weights of a link's matrices: A and C, and W of an outer link."""
    assert config.variant in ("mlp_res", "ln_res")
    is_outer = config.kind == "outer"
    middle = config.out_width * (2 if is_outer and config.variant == "ln_res" else 1)
    products = middle * (config.in_width + config.out_width)
    return products + is_outer * config.in_width * config.out_width


@pytest.mark.parametrize("rounds", [1, 3])
def test_latent_rounds(team_and_links, rounds):
    answerer = answerer_of(team_and_links, "recursive_mas", rounds)
    team, m = answerer.team, LATENT_STEPS
    system = team.system
    prompts = team.encode(QUESTIONS, slot_width=m)
    found = answerer.answer(prompts, [None])
    for i, question in enumerate(QUESTIONS):
        total, edges = 0.0, 0
        for role in ORDER:
            config, prefix = team.agents[role].config, int(prompts[role].prefix_valid[i].sum())
            total += float(read_flops(config, prefix))
            for r in range(rounds):
                how = {"later": r > 0, "slots": m}
                if role == "solver" and r == rounds - 1:
                    written = int(found.rollouts[0].tokens[i])
                    total += turn(team, role, question, prefix, more=written - 1, **how)
                    total += float(logit_flops(config, written))
                else:
                    total += turn(team, role, question, prefix, more=m - 1, **how)
                    total += 2 * m * link_products(system.inner[role])
                    edge = (role, ORDER[(ORDER.index(role) + 1) % 3])
                    total += 2 * m * link_products(system.outer["->".join(edge)])
                    edges += 1
        assert edges == 3 * rounds - 1
        assert found.flops[i] == total
    # The control: without thoughts it costs less.
    silent = answerer_of(team_and_links, "no_latents", rounds)
    without = silent.answer(team.encode(QUESTIONS, slot_width=0), [None])
    assert (without.flops < found.flops).all()


def test_work_that_reaches_no_answer_is_free(team_and_links):
    """Messages replaced at the receiver's boundary, by hand."""
    answerer = answerer_of(team_and_links, "recursive_mas", rounds=2)
    team, m = answerer.team, LATENT_STEPS
    system, prompts = team.system, team.encode(QUESTIONS, slot_width=m)

    def flops(origin):
        return latent_flops(system, team.agents, prompts, rounds=2, origin=origin)

    sent, own, given, nothing = (
        flops(lambda edge, index, origin=origin: origin) for origin in (SENT, OWN, GIVEN, NOTHING)
    )
    no_feedback = flops(lambda edge, index: NOTHING if edge == "solver->planner" else SENT)
    for i, question in enumerate(QUESTIONS):
        prefix = {role: int(prompts[role].prefix_valid[i].sum()) for role in ORDER}
        reads = {role: float(read_flops(team.agents[role].config, prefix[role])) for role in ORDER}

        def thinks(role, slots, question=question, prefix=prefix):
            body = turn(team, role, question, prefix[role], later=True, slots=slots, more=m - 1)
            return body + 2 * m * link_products(system.inner[role])

        assert nothing[i] == given[i] == reads["solver"]
        assert own[i] == reads["solver"] + thinks("solver", 0)
        messages = (
            2
            * m
            * sum(
                link_products(system.outer[edge]) for edge in ("planner->critic", "critic->solver")
            )
        )
        one_round = thinks("planner", 0) + thinks("critic", m) + messages
        assert no_feedback[i] == sum(reads.values()) + one_round < sent[i]
    # The driver's own accounting, at both ends.
    assert (sent == answerer.listen(prompts).flops).all()
    silent = answerer_of(team_and_links, "no_latents", rounds=2)
    assert (nothing == silent.listen(team.encode(QUESTIONS, slot_width=0)).flops).all()


@pytest.mark.parametrize("name", ["sequential", "mixture", "distillation", "deliberation"])
def test_steps_of_replaced_messages(name):
    topology = load_topology(name)
    for rounds in (1, 2, 3):
        assert len(latent_turns(topology, rounds)) == rounds * len(topology.order)
        for origin, steps in ((OWN, 8), (GIVEN, 0), (NOTHING, 0)):
            assert steps_before_answer(topology, rounds, 8, lambda *_, o=origin: o) == steps
        # Agents side by side count once.
        layers = 2 if name == "mixture" else len(topology.order)
        assert steps_before_answer(topology, rounds, 8) == 8 * (layers * rounds - 1)


def test_own_thoughts_run_beside_what_comes_before():
    topology = load_topology("sequential")

    def steps(edge, index):
        def origin(*place):
            return OWN if place == (edge, index) else SENT

        return steps_before_answer(topology, 2, 8, origin)

    assert steps("planner->critic", 0) == 5 * 8  # own thoughts, critic, solver, planner, critic
    assert steps("planner->critic", 1) == 2 * 8  # own thoughts, critic
    assert steps("critic->solver", 1) == 8
    assert steps("solver->planner", 1) == 3 * 8


def test_rounds_of_text(team_and_links):
    answerer = answerer_of(team_and_links, "recursive_text", rounds=2)
    team = answerer.team
    prompts = team.encode(QUESTIONS, slot_width=answerer.slot_width)
    found = answerer.answer(prompts, [None])
    messages = answerer.listen(prompts).messages
    for i, question in enumerate(QUESTIONS):
        total, newest = 0.0, dict.fromkeys(ORDER, 0)
        for role in ORDER:
            config, prefix = team.agents[role].config, prompts[role].prefix_valid[i].sum()
            total += float(read_flops(config, prefix))
        for message in messages:
            role, prefix = message.role, int(prompts[message.role].prefix_valid[i].sum())
            sender = ORDER[ORDER.index(role) - 1]
            total += turn(
                team,
                role,
                question,
                prefix,
                later=message.round > 0,
                slots=received(team, role, newest[sender], answerer.slot_width),
                more=int(message.tokens[i]) - 1,
            )
            total += float(logit_flops(team.agents[role].config, message.tokens[i]))
            newest[role] = message.texts[i]
        written, prefix = (
            int(found.rollouts[0].tokens[i]),
            int(prompts["solver"].prefix_valid[i].sum()),
        )
        slots = received(team, "solver", newest["critic"], answerer.slot_width)
        how = {"later": True, "slots": slots, "more": written - 1}
        total += turn(team, "solver", question, prefix, **how)
        total += float(logit_flops(team.agents["solver"].config, written))
        assert found.flops[i] == total


def received(team, role, text, width):
    """Positions that a text takes in a slot."""
    if not text:
        return 0
    return min(
        width, len(team.members[role].tokenizer(text, add_special_tokens=False)["input_ids"])
    )


@pytest.mark.parametrize("role", ORDER)
def test_an_agent_alone_reads_one_prompt(team_and_links, role):
    answerer = answerer_of(team_and_links, "single_agents", role=role)
    team, config = answerer.team, answerer.team.agents[role].config
    prompts = team.encode(QUESTIONS, slot_width=0)
    found = answerer.answer(prompts, [None])
    for i, question in enumerate(QUESTIONS):
        written = found.rollouts[0].tokens[i]
        length = prompt_length(team, role, question, later=False, slots=0)
        expected = read_flops(config, length + written - 1) + logit_flops(config, written)
        assert found.flops[i] == float(expected)


@pytest.mark.parametrize(
    "name", ["recursive_mas", pytest.param("recursive_text", marks=pytest.mark.slow), "no_latents"]
)
def test_padding_and_the_batch_do_not_count(team_and_links, name):
    answerer = answerer_of(team_and_links, name, rounds=2)
    prompts = answerer.team.encode(QUESTIONS, slot_width=answerer.slot_width)
    together = answerer.answer(prompts, [None]).flops
    alone = [answerer.answer(take(prompts, [i]), [None]).flops[0] for i in range(3)]
    declared = [answer.flops for answer in answerer(QUESTIONS)]
    assert together.tolist() == alone == declared
    assert len(set(alone)) == 3  # questions of different lengths


def test_sweeps_cost_what_they_read_again(team_and_links):
    """Positions and links beyond one read of each thought that is fed back."""
    answerer = answerer_of(team_and_links, "recursive_mas", rounds=2)
    team, m = answerer.team, LATENT_STEPS
    system = team.system.replace(sweeps=SweepConfig(window=m - 1))
    prompts = team.encode(QUESTIONS, slot_width=m)
    turns = np.array([2, 2, 1])  # the answerer does not think in the last round

    def flops(**how):
        return latent_flops(system, team.agents, prompts, rounds=2, **how)

    once = np.tile(turns, (len(QUESTIONS), 1))
    np.testing.assert_array_equal(flops(sweeps=once), flops())
    more = once.copy()
    more[:, 0] += 1  # by the planner
    config = team.agents["planner"].config
    context = prompts["planner"].prefix_valid.sum(1) + prompts["planner"].body_valid[:, 1].sum(1)
    each = read_flops(config, 1, context + m // 2) + 2 * link_products(system.inner["planner"])
    np.testing.assert_allclose(flops(sweeps=more) - flops(), (m - 1) * each)
