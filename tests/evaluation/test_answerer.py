"""Questions in, answers out: the same as in one batch, and without compiling anew."""

import numpy as np
import pytest
from teams import METHOD_PROMPTS, QUESTIONS, build_team

from rmas_jax.agents.sampling import row_keys
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.host.compilations import compilations
from rmas_jax.models.generation import SamplingConfig

MAX_TOKENS = 6
NAMES = [
    "recursive_mas",
    "recursive_text",
    "no_latents",
    "single_agents",
    "self_refinement",
    "mixture_of_agents",
    "textgrad",
    "majority_vote",
]


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


def answerer_of(team_and_links, name, **options):
    team, links = team_and_links
    method = METHODS[name]
    role = "critic" if method.answers_as_each else None
    return Answerer(
        team,
        links,
        method,
        1 if role else 2,
        Answering(MAX_TOKENS, **options),
        role,
        batch_size=2,
        templates=METHOD_PROMPTS.get(method.schedule),
    )


SLOW = ("textgrad", "recursive_text")  # their parts are those of other methods


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in NAMES]
)
def test_answers_are_those_of_one_batch_of_exact_widths(team_and_links, name):
    answerer = answerer_of(team_and_links, name)
    prompts = answerer.team.encode(
        QUESTIONS, slot_width=answerer.slot_width, templates=answerer.templates
    )
    whole = answerer.answer(prompts, [None])
    one_by_one = answerer(QUESTIONS)  # batches of two, the last one filled up
    assert [answer.question for answer in one_by_one] == list(QUESTIONS)
    assert [answer.text for answer in one_by_one] == whole.rollouts[0].texts
    assert [answer.tokens for answer in one_by_one] == whole.tokens.tolist()
    assert [answer.steps for answer in one_by_one] == np.broadcast_to(whole.steps, 3).tolist()
    assert len({answer.text for answer in one_by_one}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_new_question_compiles_nothing(team_and_links, name):
    answerer = answerer_of(team_and_links, name)
    answerer(QUESTIONS)  # of the widths of those below
    known = compilations()
    answerer(["v", "where does the parcel end a", "from b to a"])
    assert compilations() == known
    answerer(["parcel " * 40])  # as long a question as none before
    assert compilations() > known


def test_drawn_answers_follow_from_the_seed_and_the_number_of_the_question(team_and_links):
    drawn = {"sampling": SamplingConfig(temperature=3.0), "rollouts": 2}
    answerer = answerer_of(team_and_links, "recursive_mas", **drawn)
    first = answerer(QUESTIONS, seed=1)
    assert answerer(QUESTIONS, seed=1) == first != answerer(QUESTIONS, seed=2)
    assert all(len(answer.texts) == 2 for answer in first)
    keys = answerer.keys(1, np.arange(3))
    assert len(keys) == 2 and keys[0].shape == row_keys(keys[0][0], np.arange(3)).shape


def test_a_method_that_passes_latents_needs_links(team_and_links):
    with pytest.raises(ValueError, match="links must be given for the method recursive_mas"):
        Answerer(team_and_links[0])
    Answerer(team_and_links[0], method=METHODS["recursive_text"])


def test_a_method_with_prompts_of_its_own_needs_them(team_and_links):
    with pytest.raises(ValueError, match="templates must be given for textgrad, got None"):
        Answerer(team_and_links[0], method=METHODS["textgrad"])
