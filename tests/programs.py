"""The main programs of the embedded team, lowered: a digest of each, and what it is made of.

    python tests/programs.py            # writes programs.json anew, and says what changed

A redesign that changes no program leaves every digest as it is. Where one does change, the commit
that renews it says why, and what it costs or gains.
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents.answers import write_jitted
from rmas_jax.config import InnerConfig, PhaseConfig, load_config
from rmas_jax.data import Example
from rmas_jax.rounds import recursion
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.team import Team, load_team, start_links
from rmas_jax.training.data.encoding import TrainingData, encode_examples
from rmas_jax.training.inner.step import regress_block, start_link
from rmas_jax.training.outer.step import outer_step, start_phase

ROOT = Path(__file__).parent.parent
COMMITTED = Path(__file__).with_name("programs.json")
QUESTIONS = (
    "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?",
    "The pass phrase Fumes Dabil goes through one gate, red, green and blue in turn.",
)
OPERATION = re.compile(r'^\s*(?:%\S+ = )?"?(\w+(?:\.\w+)+|call|return)\b', re.MULTILINE)


def normal_form(text: str) -> str:
    """StableHLO without names that the Python code chooses, and without places in it."""
    text = re.sub(r"(?m)^#loc.*\n|\s*loc\(.*?\)|module @\S+", "", text)
    text = re.sub(r'\s*(?:jax|mhlo)\.\w+_info = "[^"]*",?', "", text)
    names: dict[str, str] = {}
    return re.sub(r"@[\w.$-]+", lambda m: names.setdefault(m[0], f"@f{len(names)}"), text)


def describe(lowered: Any) -> dict[str, Any]:
    """Digest of a program's normal form, and how often each operation stands in it."""
    text = normal_form(lowered.as_text())
    counts = collections.Counter(name.removeprefix("func.") for name in OPERATION.findall(text))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"digest": digest, "operations": dict(sorted(counts.items()))}


def phase_of(latents: str) -> PhaseConfig:
    return PhaseConfig(
        name="phase",
        latents=latents,
        rounds=2,
        steps=10,
        batch_size=2,
        learning_rate=1e-3,
        warmup_steps=1,
        role_text_weight=1.0,
    )


def training_data(team: Team) -> TrainingData:
    """Two items with texts of every role."""
    text = "Kenal Bison, no gates left"
    roles = team.system.topology.order
    texts = dict.fromkeys(roles, (text, text))
    items = [Example(question, question, text, texts=texts) for question in QUESTIONS]
    return encode_examples(team, items).batch()


def programs() -> Mapping[str, Callable[[], Any]]:
    """Name -> lowers that program."""
    team = load_team(load_config("quickstart").system)
    links = start_links(team, start="torch_default", key=jax.random.key(0))
    system, agents = team.system, team.agents
    prompts = team.encode(QUESTIONS)
    answerer = system.topology.answerer
    ends = {"end_tokens": team.members[answerer].end_tokens, "max_tokens": 8}

    def listen(links, agents, prompts, rounds):
        return recursion.listen(
            system, agents, LatentChannel(system, links), prompts, rounds=rounds
        )

    def solve(links, agents, prompts, rounds):
        channel = LatentChannel(system, links)
        return recursion.solve(system, agents, channel, prompts, rounds=rounds, **ends)

    def run_rounds(links, agents, prompts):
        return recursion.run_rounds(
            system, agents, LatentChannel(system, links), prompts, recursion.Unroll(rounds=2)
        ).received

    def outer(latents):
        phase = phase_of(latents)
        step = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
        return step.lower(system, phase, agents, training_data(team), start_phase(phase, links))

    def inner():
        config = InnerConfig(steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=1)
        link, params = system.inner["planner"], links.inner["planner"]
        block = jnp.zeros((4, 8, link.in_width)), jnp.zeros((4, 8, link.out_width))
        step = jax.jit(regress_block, static_argnums=(0, 1), donate_argnums=2)
        state = start_link(params, config)
        return step.lower(link, config, state, *block, key=jax.random.key(0), noise=np.float32(0))

    def speak():
        prompt = jax.eval_shape(listen, links, agents, prompts, jnp.int32(2)).prompt
        return write_jitted.lower(agents[answerer], prompt, **ends)

    def lowered(function, *args):
        return lambda: jax.jit(function).lower(*args)

    return {
        "listen": lowered(listen, links, agents, prompts, jnp.int32(2)),
        "solve": lowered(solve, links, agents, prompts, jnp.int32(2)),
        "run_rounds": lowered(run_rounds, links, agents, prompts),
        "outer_step, teacher-forced": lambda: outer("teacher_forced"),
        "outer_step, on-policy": lambda: outer("on_policy"),
        "inner step": inner,
        "speak": speak,
    }


def described() -> dict[str, Any]:
    """What is committed, as it is now."""
    return {
        "jax": jax.__version__,
        "programs": {name: describe(lower()) for name, lower in programs().items()},
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each program that is another one, with the operations that it gained or lost."""
    lines = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            lines.append(f"{name}: {'new' if old is None else 'gone'}")
        elif old["digest"] != new["digest"]:
            kinds = sorted({*old["operations"], *new["operations"]})
            moved = [
                f"{kind} {difference:+d}"
                for kind in kinds
                if (difference := new["operations"].get(kind, 0) - old["operations"].get(kind, 0))
            ]
            lines.append(f"{name}: {', '.join(moved) or 'the same operations, otherwise joined'}")
    return lines


def main() -> None:
    before = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {"programs": {}}
    after = described()
    COMMITTED.write_text(json.dumps(after, indent=1) + "\n")
    print("\n".join(changes(before["programs"], after["programs"]) or ["no program changed"]))


if __name__ == "__main__":
    main()
