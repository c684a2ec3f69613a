"""Shapes of what the public functions of the core return, in the dimension letters of their docs.

Nothing is computed: `jax.eval_shape` traces each function on the tiny system.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import LATENT_STEPS as M
from systems import QUESTIONS

from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.agents.reading import PromptInput, read_body, read_prefix
from rmas_jax.agents.sampling import row_keys, seen_tokens, speak
from rmas_jax.agents.thinking import think
from rmas_jax.agents.writing import write
from rmas_jax.links import align_link, apply_link, init_link, link_shapes
from rmas_jax.rounds.channels import LatentChannel, ShuffledChannel, SoftmaxChannel
from rmas_jax.rounds.recursion import Unroll, crossing_probes, listen, run_rounds, solve
from rmas_jax.rounds.stages import arrivals, begin, deliver, no_feedback, scored_turn, think_turn
from rmas_jax.rounds.supervision import Supervision, Targets, score_text, token_losses

B, R, T, W, V = len(QUESTIONS), 2, 5, 4, 37
ROLE, RECEIVER = "critic", "solver"
EDGE = (ROLE, RECEIVER)


def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(scope="module")
def core(tiny_system):
    """The tiny system, and arguments of its functions as shapes."""

    class Core:
        system, agents, links = tiny_system.system, tiny_system.agents, tiny_system.links
        prompts = tiny_system.prompts()
        agent = agents[ROLE]
        D, E = agents[ROLE].width, agents[RECEIVER].width
        ids, valid = of((B, T), jnp.int32), of((B, T), bool)
        target = Targets(of((B, W), jnp.int32), of((B, W), bool))
        targets = Targets(of((B, R, W), jnp.int32), of((B, R, W), bool))
        channel = LatentChannel(system, links)

        def prompt(self):
            prefix = jax.eval_shape(read_prefix, self.agent, self.ids, self.valid)
            none = of((B, 0, self.D))
            return PromptInput(prefix, self.ids, self.valid, none, (-1,) * T)

        def read(self):
            return jax.eval_shape(read_body, self.agent, self.prompt())

        def stages(self):
            return jax.eval_shape(
                lambda agents, channel, prompts: begin(self.system, agents, channel, prompts),
                self.agents,
                self.channel,
                self.prompts,
            )

    return Core()


def shape(function, *args, **options):
    """Shapes of all leaves of what a function returns."""
    out = jax.eval_shape(lambda *given: function(*given, **options), *args)
    return jax.tree.map(lambda leaf: leaf.shape, out)


def test_an_agent(core):
    hidden = of((B, T, core.D))
    assert shape(lambda a, ids: a.embed(ids), core.agent, core.ids) == (B, T, core.D)
    assert shape(lambda a: a.embedding_table(), core.agent) == (V, core.D)
    read, cache = jax.eval_shape(lambda a, x, v: a.read(x, v), core.agent, hidden, core.valid)
    assert read.shape == (B, T, core.D) and cache.tail.valid.shape == (B, T)
    packed = shape(lambda a, x, s: a.read_packed(x, s), core.agent, hidden, core.ids)
    assert packed == (B, T, core.D)
    assert shape(lambda a, h: a.unembed(h), core.agent, hidden) == (B, T, V)


def test_reading_thinking_writing(core):
    hidden, cache = core.read()
    assert hidden.shape == (B, core.D)
    thoughts = shape(
        lambda a, h, c: think(a, lambda x: x, h, c, steps=M).thoughts, core.agent, hidden, cache
    )
    assert thoughts == (B, M, core.D)
    ends = {"end_tokens": (1,), "max_tokens": W}
    state = jax.eval_shape(lambda a, h, c: speak(a, h, c, **ends), core.agent, hidden, cache)
    assert state.tokens.shape == (B, W) and state.lengths.shape == state.done.shape == (B,)
    state = jax.eval_shape(lambda a, p: write(a, p, **ends), core.agent, core.prompt())
    assert state.tokens.shape == (B, W) and state.finite.shape == (B,)
    assert shape(seen_tokens, core.ids, core.valid, vocab_size=V) == (B, V)
    assert row_keys(jax.random.key(0), np.arange(B)).shape == (B,)
    found = shape(nearest_tokens, core.agent, of((B, M, core.D)), count=3)
    assert found == ((B, M, 3), (B, M, 3))


@pytest.mark.parametrize("kind", ["inner", "outer"])
def test_a_link(core, kind):
    config = core.system.inner[ROLE] if kind == "inner" else core.system.outer["critic->solver"]
    params = jax.eval_shape(lambda key: init_link(config, key), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == link_shapes(config)
    sent = jax.eval_shape(lambda p, x: apply_link(config, p, x), params, of((B, M, core.D)))
    assert sent.shape == (B, M, core.D if kind == "inner" else core.E)
    if kind == "outer":
        pairs = of((7, core.D)), of((7, core.E))
        aligned = jax.eval_shape(lambda p, x, y: align_link(config, p, x, y), params, *pairs)
        assert jax.tree.map(lambda leaf: leaf.shape, aligned) == link_shapes(config)


def test_channels(core):
    tokens = {name: (np.arange(3), np.arange(3)) for name in core.system.outer}
    latent = core.channel
    for channel in (latent, ShuffledChannel(latent), SoftmaxChannel(core.agents, tokens)):
        hidden, thoughts = of((B, T, core.D)), of((B, M, core.D))
        assert shape(lambda c, h: c.feed(ROLE, h), channel, hidden) == (B, T, core.D)
        assert shape(lambda c, h: c.send(EDGE, h), channel, thoughts) == (B, M, core.E)


def test_a_turn(core):
    stages = core.stages()
    inbox = {name: of((B, M, core.system.width(name.split("->")[1]))) for name in core.system.outer}
    arrived = jax.eval_shape(lambda s, i: arrivals(s, i, ROLE, index=0), stages, inbox)
    assert arrived.shape == (B, M, core.D)
    thoughts = jax.eval_shape(lambda s, x: think_turn(s, ROLE, x, kind=1).thoughts, stages, arrived)
    assert thoughts.shape == (B, M, core.D)
    turn = jax.eval_shape(
        lambda s, x, t: scored_turn(s, ROLE, x, t, kind=1), stages, arrived, core.target
    )
    assert turn.thoughts.shape == (B, M, core.D)
    assert turn.score.loss.shape == turn.score.exact_match.shape == (B,)
    sent = shape(lambda s, x: deliver(s, ROLE, x), stages, thoughts)
    assert sent == {"critic->solver": (B, M, core.E)}
    fed = no_feedback(core.system, core.agents, core.prompts)
    assert {name: x.shape for name, x in fed.items()} == {
        "solver->planner": (B, M, core.agents["planner"].width)
    }


def test_scores_of_texts(core):
    states = of((B, W, core.D))
    losses = shape(token_losses, core.agent, states, core.target.ids)
    assert losses == ((B, W), (B, W))
    score = jax.eval_shape(score_text, core.agent, core.target, states)
    assert score.loss.shape == score.exact_match.shape == (B,)


def test_rounds(core):
    S, N = M, len(core.system.topology.order)
    supervision = Supervision({ROLE: core.targets}, keep_thoughts=True)
    probes = crossing_probes(core.system, rounds=R, batch=B)
    assert probes["critic->solver"].shape == (R, B, M, core.E)

    def rounds(agents, channel, prompts, supervision):
        return run_rounds(
            core.system, agents, channel, prompts, Unroll(rounds=R), supervision, probes=probes
        )

    out = jax.eval_shape(rounds, core.agents, core.channel, core.prompts, supervision)
    assert out.received.shape == (R, B, S, core.E)
    assert out.scores[ROLE].loss.shape == out.scores[ROLE].exact_match.shape == (R, B)
    assert out.thoughts[ROLE].shape == (R, B, M, core.D)
    assert out.change.shape == (R, B) and out.finite.shape == (R, B, N)

    def listened(agents, channel, prompts, rounds):
        return listen(core.system, agents, channel, prompts, rounds=rounds)

    outcome = jax.eval_shape(listened, core.agents, core.channel, core.prompts, of((), jnp.int32))
    assert outcome.prompt.received.shape == (B, S, core.E)
    assert outcome.took.shape == outcome.fault.shape == (B,)

    def solved(agents, channel, prompts, rounds):
        ends = {"end_tokens": (1,), "max_tokens": W}
        return solve(core.system, agents, channel, prompts, rounds=rounds, **ends)

    state = jax.eval_shape(solved, core.agents, core.channel, core.prompts, of((), jnp.int32))
    assert state.tokens.shape == (B, W) and state.lengths.shape == (B,)
