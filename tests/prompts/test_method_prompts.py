"""Prompts of text methods: the shipped ones and sections of prompt sets."""

import pytest

from rmas_jax.prompts import PromptError, RolePrompt, load_method_prompts, load_prompts
from rmas_jax.prompts.templates import task_types
from rmas_jax.rounds.schedules import RECURSION, SCHEDULES, edges_of
from rmas_jax.topology import load_topology

SET = """
left: {{system: You are left., first: "{{question}} go"}}
right: {{first: "{{question}} left: {{left}} finish"}}
methods:
  {section}
"""
OWN = {"left": RolePrompt("You are left.", "{question} go", "{question} go")}
OWN["right"] = RolePrompt("", "{question} left: {left} finish", "{question} left: {left} finish")
EDGES = {
    "refinement": [("right", "right")],
    "layers": [(a, b) for b in OWN for a in OWN],
}


def read(tmp_path, section, edges=EDGES, task_type=None, own=OWN):
    file = tmp_path / "mine.yaml"
    file.write_text(SET.format(section=section))
    return load_method_prompts(str(file), edges, own, answerer="right", task_type=task_type)


LAYERS = 'layers: {agents: {first: "{question}", later: "{question} {texts}"}}'
REFINEMENT = 'refinement: {answerer: {first: "{question}", later: "{question} {draft}"}}'


def test_drafts_and_texts_are_slots_of_the_senders(tmp_path):
    section = (
        'refinement: {right: {system: S., first: "{question}", later: "{question} {draft}."}}\n'
        '  layers: {agents: {first: "{question}", later: "{question}\\n{texts}!", '
        'text: "{number}: {text}"}, left: {first: "{question} {draft} and {texts}"}}'
    )
    found = read(tmp_path, section)
    assert found["refinement"] == {"right": RolePrompt("S.", "{question}", "{question} {right}.")}
    both = "{question} {right} and {left}"
    assert found["layers"] == {
        "left": RolePrompt("You are left.", both, both),
        "right": RolePrompt("", "{question}", "{question}\n1: {left}\n2: {right}!"),
    }


@pytest.mark.parametrize("topology", ["sequential", "mixture", "distillation", "deliberation"])
@pytest.mark.parametrize("task_type", task_types())
def test_shipped_prompts_serve_the_papers_topologies_and_every_task(topology, task_type):
    shape = load_topology(topology)
    own = load_prompts(topology, shape.edges, task_type)
    edges = {
        name: edges_of(schedule, shape) for name, schedule in SCHEDULES.items() if name != RECURSION
    }
    found = load_method_prompts(topology, edges, own, answerer=shape.answerer, task_type=task_type)
    finish = task_types()[task_type]["finish"]
    for method, prompts in found.items():
        assert set(prompts) == {role for edge in edges[method] for role in edge}
        for role, prompt in prompts.items():
            senders = {sender for sender, receiver in edges[method] if receiver == role}
            assert all(f"{{{sender}}}" in prompt.later for sender in senders)
            assert prompt.system == own[role].system and "{problem}" not in prompt.later
            writes_answers = method != "textgrad" or role == shape.answerer
            assert (finish in prompt.first) == (finish in prompt.later) == writes_answers
    assert found["textgrad"][shape.answerer].later.count("Feedback") == len(shape.order)


def test_without_a_task_type_the_problem_is_the_answerers_own_prompt(tmp_path):
    shape = load_topology("sequential")
    own = dict.fromkeys(shape.order, RolePrompt("", "{question} by {critic}, in one word", ""))
    edges = {"self_refinement": [("solver", "solver")]}
    file = tmp_path / "mine.yaml"
    file.write_text("solver: {}")
    prompts = load_method_prompts(str(file), edges, own, answerer="solver", task_type=None)
    assert prompts["self_refinement"]["solver"].first.startswith("{question} by , in one word")


def test_columns_of_the_answerers_prompt_are_in_its_own_problem_alone(tmp_path):
    text = "{question} by {hint} {left}"
    own = OWN | {"right": RolePrompt("", text, text, ("hint",))}
    file = tmp_path / "mine.yaml"
    file.write_text("right: {}")
    edges = {"mixture_of_agents": EDGES["layers"]}
    found = load_method_prompts(str(file), edges, own, answerer="right", task_type=None)
    by_role = found["mixture_of_agents"]
    assert by_role["right"].first.startswith("{question} by {hint} \n")
    assert by_role["left"].first.startswith("{question} by  \n")
    assert by_role["right"].columns == ("hint",) and by_role["left"].columns == ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[layers]", r"mine.yaml: methods must have prompts of refinement, layers only, got"),
        ("vote: {}", "methods must have prompts of refinement, layers only, got {'vote': {}}"),
        ("layers: 3", "methods: layers must have one of left, agents, got 3"),
        ('layers: {left: {first: "{question}"}}', r"layers: left must have \['left', 'right'\]"),
        ("layers: {agents: 3}", "layers: left must have a text first, and may have system"),
        (
            'layers: {agents: {first: "{texts}"}}',
            r"layers: left must have {question} or a column of the data",
        ),
        (
            'layers: {agents: {first: "{question}", later: "{question} {text}"}}',
            r"layers: left must have \['left', 'right'\]",
        ),
        (
            'refinement: {answerer: {first: "{question}", later: "{question} {draft} {left}"}}',
            r"refinement: right must have slots of its senders \['right'\] only, got \['left'\]",
        ),
    ],
)
def test_a_faulty_section_is_named(tmp_path, section, message):
    edges = {name: EDGES[name] for name in ("refinement", "layers")}
    complete = {"layers": REFINEMENT, "refinement": LAYERS}.get(section.partition(":")[0])
    with pytest.raises(PromptError, match=message):
        read(tmp_path, f"{section}\n  {complete}" if complete else section, edges)
