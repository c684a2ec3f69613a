"""The programs that answer questions by latent rounds, from shapes alone, lowered.

    prefixes -> rounds -> prompt -> first token -> a pool of rows, or one text a row

Without memory for what methods share, the rounds read the prefixes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents import pool as pools
from rmas_jax.agents.answers import stops_of, write_jitted
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import row_keys
from rmas_jax.evaluation.listening import (
    listen_jitted,
    progress_shardings,
    read_prefix_jitted,
    start_jitted,
)
from rmas_jax.planning.bounds import Bound, bound_of_answer, bound_of_rounds, reading, widths
from rmas_jax.planning.programs import Compile, Program
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.runs.plan_inputs import RunInputs
from rmas_jax.runs.plan_shapes import (
    abstract_links,
    cached_bytes,
    caches_of,
    on_sharding,
    others,
    replicated_on,
)
from rmas_jax.runs.resources import answering_team
from rmas_jax.sharding import abstract_batch, with_shardings
from rmas_jax.team import Team


def plan_answers(inputs: RunInputs, compile_: Compile) -> None:
    """Compiles the programs that answer questions by latent rounds, in their order."""
    team, how = answering_team(inputs.team, inputs.config), inputs.answering
    system, role = team.system, team.system.topology.answerer
    member, agent = team.members[role], team.members[role].agent
    links = on_sharding(replicated_on(team), abstract_links(team))
    prompts = abstract_batch(inputs.prompts, team.mesh)
    rounds = max(inputs.config.evaluation.rounds)
    rows, prefix, body = widths(inputs.prompts[role])
    prefixes = before = None
    if inputs.config.runtime.shared_gib:
        prefixes = {
            role: compile_(_prefix_program(team, role, prompts[role]))
            for role in system.topology.order
        }
        if None in prefixes.values():
            return
        before = jax.eval_shape(functools.partial(start_jitted, system), team.agents, prompts)
        if team.mesh is not None:
            before = with_shardings(before, progress_shardings(before, team.mesh))
    listened = compile_(
        Program(
            name=f"rounds, {rounds}",
            lower=functools.partial(
                listen_jitted.lower,
                system,
                team.agents,
                LatentChannel(system, links),
                prompts,
                prefixes,
                before,
                rounds=jax.ShapeDtypeStruct((), np.int32),
                shuffle=jax.ShapeDtypeStruct((), bool),
            ),
            items=rows,
            runs=None,
            arguments={
                "weights": team.agents,
                "links": links,
                "inputs": (prompts, before),
                "caches": prefixes,
            },
            beside={},
            caches=caches_of(team, inputs.prompts, has_prefixes=prefixes is None),
            trips=rounds,
            taken=(rounds - 1)
            / rounds,  # in the last round the answerer writes, and does not think
            bound=bound_of_rounds(
                system,
                team.agents,
                inputs.prompts,
                rounds=rounds,
                reads_prefixes=prefixes is None,
            ),
            is_answer=True,
        )
    )
    if listened is None:
        return
    progress, read_here = listened
    if team.mesh is not None:
        progress = with_shardings(progress, progress_shardings(progress, team.mesh))
    own = prompts[role]
    of_kind = jax.eval_shape(lambda both: [x[:, 0] for x in both], (own.body_ids, own.body_valid))
    ids, valid = abstract_batch(of_kind, team.mesh)
    cache = prefixes[role] if prefixes else read_here
    prompt = PromptInput(cache, ids, valid, progress.received, own.slot_index)
    settings = {
        "end_tokens": member.end_tokens,
        "max_tokens": how.max_tokens,
        "sampling": how.sampling,
        "stops": stops_of(member, how.toolbox),
    }
    keys = None
    if how.sampling.temperature:
        keys = jax.eval_shape(lambda: row_keys(jax.random.key(0), jnp.arange(rows)))
    # While one agent writes, the others and the links stay where they are.
    answer = dataclasses.replace(
        _ANSWER,
        name=f"answer, {how.max_tokens} tokens",
        items=rows,
        beside={"weights": others(team, role), "links": links},
        trips=how.max_tokens,
        bound=bound_of_answer(agent, rows, prefix + body, tokens=how.max_tokens),
        is_answer=True,
    )
    if not how.refills:
        limits = jax.ShapeDtypeStruct((rows,), np.int32)
        compile_(
            dataclasses.replace(
                answer,
                lower=functools.partial(
                    write_jitted.lower, agent, prompt, keys=keys, limits=limits, **settings
                ),
                arguments={"weights": agent, "caches": prompt},
                caches=cached_bytes(team, role, rows, body + how.max_tokens),
            )
        )
        return
    read = compile_(
        dataclasses.replace(
            answer,
            name="answer, prompt",
            lower=functools.partial(pools.read_prompts.lower, agent, prompt),
            arguments={"weights": agent, "caches": prompt},
            trips=None,
            bound=Bound((reading(agent, rows, body, prefix),)),
        )
    )
    if read is None:
        return
    begun = compile_(
        dataclasses.replace(
            answer,
            name="answer, first token",
            lower=functools.partial(pools.begin.lower, agent, *read, keys=keys, **settings),
            arguments={"weights": agent, "caches": read},
            trips=None,
            bound=None,
        )
    )
    if begun is None:
        return
    pool = pools.pool_shapes(agent.decoder, begun)
    filled = jax.ShapeDtypeStruct((pools.filled_at_once(rows),), np.int32)
    pool = compile_(
        dataclasses.replace(
            answer,
            name="answer, rows of the pool",
            lower=functools.partial(pools.fill.lower, agent.decoder, pool, begun, filled, filled),
            arguments={"caches": (begun, pool)},
            beside={"weights": team.agents, "links": links},
            trips=None,
            bound=None,
        )
    )
    if pool is None:
        return
    ended = jax.ShapeDtypeStruct((), np.int32)
    compile_(
        dataclasses.replace(
            answer,
            lower=functools.partial(pools.run.lower, agent, pool, ended, **settings),
            arguments={"weights": agent, "caches": pool},
        )
    )


def _prefix_program(team: Team, role: str, prompt: StagePrompt) -> Program:
    """An agent's reading of what a role's prompts have in common, for all that share it."""
    rows, prefix, _ = widths(prompt)
    agent = team.members[role].agent
    arrays = prompt.prefix_ids, prompt.prefix_valid
    return Program(
        name=f"prefix of {role}",
        lower=functools.partial(read_prefix_jitted.lower, agent, *arrays),
        items=rows,
        runs=None,
        arguments={"weights": agent, "inputs": arrays},
        beside={"weights": others(team, role)},
        caches=cached_bytes(team, role, rows, prefix),
        bound=Bound((reading(agent, rows, prefix),)),
        is_answer=True,
    )


_ANSWER = Program("answer", lambda: None, items=0, arguments={}, beside={})  # type: ignore[arg-type,return-value]
