"""The table of methods."""

import re

import pytest

from rmas_jax.config import ConfigError
from rmas_jax.config.training import TUNING_KINDS
from rmas_jax.evaluation.methods import METHODS, Method, chosen_methods, describe, ordered


def test_every_method_is_described_once():
    assert all(name == method.name and method.meaning for name, method in METHODS.items())
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert len({(m.colour, m.marker) for m in METHODS.values()}) == len(METHODS)


def test_single_agents_and_unknown_methods_have_labels_too():
    single = describe("single_math_expert")
    assert (single.name, single.label) == ("single_math_expert", "single math expert")
    assert single.colour == METHODS["single_agents"].colour
    assert describe("their_method").label == "their method"
    names = ["x", "single_solver", "recursive_text", "recursive_mas", "x"]
    assert ordered(names) == ["recursive_mas", "recursive_text", "x", "single_solver"]


def test_a_method_that_does_not_exist_is_named_with_all_that_do():
    served = tuple(name for name, method in METHODS.items() if not method.is_tuned)
    assert chosen_methods(None, loop_lm="a/b") == served
    assert chosen_methods(None) == tuple(name for name in served if name != "loop_lm")
    assert chosen_methods(["no_latents"]) == ("no_latents",)
    with pytest.raises(ConfigError) as error:
        chosen_methods(["recursive_mas", "magic"])
    assert str(error.value).startswith("evaluation.methods.1: must be one of recursive_mas, ")
    assert str(error.value).endswith("answerer_soft_prompt, got 'magic'")
    with pytest.raises(ConfigError, match=r"loop_lm must be .* for the method loop_lm, got null"):
        chosen_methods(["no_latents", "loop_lm"])


def test_tuned_answerers_need_their_entry():
    tuned = [f"answerer_{kind}" for kind in TUNING_KINDS]
    assert [name for name, method in METHODS.items() if method.is_tuned] == tuned
    assert chosen_methods(None, loop_lm="a/b", tuned=tuned) == tuple(METHODS)
    assert chosen_methods(None, tuned=tuned[1:2])[-1] == "answerer_full"
    assert chosen_methods(["answerer_full"], tuned=tuned) == ("answerer_full",)
    message = (
        "evaluation.methods.1: answerer_lora needs an entry with kind: lora in the section tuning, "
        "got answerer_full"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        chosen_methods(["no_latents", "answerer_lora"], tuned=["answerer_full"])
    assert METHODS["answerer_full"].variants((2, 3), order=("a", "b"), latent_steps=4) == [
        (None, 1)
    ]


@pytest.mark.parametrize("field", ["channel", "schedule", "selection"])
def test_a_method_names_parts_that_exist(field):
    with pytest.raises(ValueError, match=f"{field} of the method mine must be one of .*'magic'"):
        Method("mine", "mine", "", **{field: "magic"})


@pytest.mark.parametrize(
    ("name", "latent_steps", "variants"),
    [
        ("self_refinement", 16, [(None, 1), (None, 3)]),
        ("self_refinement", 0, []),  # no budget
        ("mixture_of_agents", 16, [(None, 3)]),
        ("textgrad", 0, [(None, 3)]),
        ("majority_vote", 0, [(None, 1)]),
        ("best_of_agents", 16, [(None, 1)]),
    ],
)
def test_text_methods_are_measured_where_they_differ_from_the_answerer_alone(
    name, latent_steps, variants
):
    order = ("planner", "solver")
    found = METHODS[name].variants([1, 3], order=order, latent_steps=latent_steps)
    assert found == variants
