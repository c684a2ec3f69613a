"""What training can press into M thoughts: trials, each a row beside the capacity curve.

    python -m experiments.real_agents.trials --out docs/real-agents/curve --links FILE \\
        --set system.agents.planner=DIR --set system.agents.solver=DIR

The solver is asked about every person of the same message, and agents read what stands before the
message once for all trials. So a step costs a fraction of one of the outer loop, and has more to
learn from. Accuracy is over messages of validation entities, with all questions about each;
"other" is the accuracy with the message of another item, "train" that over as many messages of
training. FILE has the links that all trials start from: aligned ones, from the folder of a run.

Trials that are in the report already, with the same settings, are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.real_agents.free_vectors import (
    answer_states,
    by_row,
    message_vectors,
    questions,
)
from experiments.real_agents.messages import (
    EDGE,
    Known,
    Messages,
    Params,
    answered,
    by_question,
    read_all,
    right,
    sent,
    sent_vectors,
    summary,
    with_count,
)
from experiments.real_agents.options import (
    add_numbers,
    check_batch,
    configured,
    digests,
    links_of_seeds,
    measured,
    measurement_parser,
    rows_of_earlier,
    settings_of,
    with_steps,
    write_report,
)
from experiments.real_agents.text_states import (
    TextStates,
    first_tokens,
    states_loss,
    text_states,
    words_loss,
)
from rmas_jax.agents.adapters import start_adapter
from rmas_jax.agents.agent import Agent
from rmas_jax.config import RunConfig, TuningConfig
from rmas_jax.data import evidence
from rmas_jax.host.command_line import Parser
from rmas_jax.links import Links, count_parameters
from rmas_jax.team import Team, load_team

REPORT = "trials.json"


class Trial(NamedTuple):
    """How the links are trained.

    Losses: "answers" is the cross-entropy of all answers to a message, "choice" `choice_loss`,
    "states" `states_loss` (no answers, as dense a target as there is), "words" `words_loss` (a
    thought is to be a word, of one token or several).
    """

    about: str
    steps: int
    loss: str = "answers"
    rate: float = 3e-4  # the largest
    path: tuple[int, ...] = ()  # M of earlier parts of the training, each of as many steps
    noise: float = 0.0  # on the vectors, in units of their rms
    rank: int = 0  # of low-rank updates of the sender's matrices, as it thinks
    # Of the solver's logits in `choice_loss`. It is sure of its answers, also of wrong ones:
    # cross-entropy falls the fastest where messages make it unsure.
    temperature: float = 6.0
    warmup: float = 0.1  # of the steps


TRIALS = {
    "aligned": Trial("aligned links, no training", 0),
    "answers": Trial("cross-entropy of all answers", 150),
    "slow": Trial("the same at a tenth of the learning rate", 150, rate=3e-5),
    "fast": Trial("the same at three times the learning rate", 150, rate=1e-3),
    "choice": Trial("choice among the answers at temperature 6", 150, "choice"),
    "slow_choice": Trial("the same at a tenth of the learning rate", 150, "choice", rate=3e-5),
    "adapter": Trial(
        "choice, also a LoRA of rank 16 on the sender's thinking", 150, "choice", rank=16
    ),
    "shrunk": Trial("choice, M from 11 over 8 and 6", 40, "choice", path=(11, 8, 6)),
    "noise": Trial("choice, noise of half their rms", 150, "choice", noise=0.5),
    "states": Trial("the states of a text reader, at all layers", 150, "states"),
    "noisy_states": Trial("the same, noise of half their rms", 150, "states", noise=0.5),
    "states_adapter": Trial(
        "the states of a text reader, also a LoRA of rank 16 on the sender's thinking",
        150,
        "states",
        rank=16,
    ),
    "words": Trial(
        "a thought is a word: the embedding of its first token; M from 2 over 4",
        150,
        "words",
        path=(2, 4),
    ),
}


def definition(name: str) -> dict[str, Any]:
    """How a trial is defined now, as a report has it."""
    return json.loads(json.dumps(TRIALS[name]._asdict()))


def defined(trial: Mapping[str, Any]) -> Trial:
    """The trial that a report has; what it does not say is as it always was."""
    return Trial(**{**trial, "path": tuple(trial["path"])})


def choice_loss(
    agents: Mapping[str, Agent], vectors: jax.Array, batch: Messages, temperature: float
) -> jax.Array:
    """Cross-entropy of each answer's first token among those of the answers to the same message.

    Logits are divided by the temperature. Answers with the same first token count as one.
    """
    agent = agents[evidence.SOLVER]
    answer, states = answer_states(agent, by_row(vectors, batch.asked), by_question(batch))
    logits = agent.unembed(states[:, :1])[:, 0] / temperature
    first = answer.ids[:, 0].reshape(len(vectors), -1)  # [messages, questions]
    found = jnp.take_along_axis(
        logits.reshape(*first.shape, -1), first[:, None].repeat(first.shape[1], 1), axis=-1
    )  # [messages, questions, answers]
    repeated = jnp.tril(first[:, :, None] == first[:, None], -1).any(-1)  # an earlier one is alike
    every = jax.nn.logsumexp(found, axis=-1, where=~repeated[:, None])
    return every - jnp.diagonal(found, axis1=1, axis2=2)


def train(
    team: Team,
    trial: Trial,
    params: Params,
    batches: Sequence[Messages],
    key: Any,
    texts: Sequence[TextStates | np.ndarray | None],
) -> Any:
    """Trained parameters, and the mean loss of the last tenth of the steps.

    The order of batches is drawn anew in each pass over them. `texts` are those of the batches, for
    a trial of states or words.
    """
    system = team.system
    agents = {role: agent.in_training() for role, agent in team.agents.items()}
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, trial.rate, max(1, round(trial.warmup * trial.steps)), trial.steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(agents: Any, params: Params, state: Any, batch: Messages, text: Any, key: Any) -> Any:
        def loss_of(params: Params) -> jax.Array:
            vectors = sent_vectors(system, agents, params, batch)
            rms = jnp.sqrt(jnp.mean(jax.lax.stop_gradient(vectors) ** 2))
            vectors += trial.noise * rms * jax.random.normal(key, vectors.shape)
            match trial.loss:
                case "states":
                    return states_loss(agents[evidence.SOLVER], vectors, batch, text)
                case "words":
                    return words_loss(vectors, text)
                case "choice":
                    return choice_loss(agents, vectors, batch, trial.temperature).mean()
                case "answers":
                    return answered(agents, vectors, batch).loss.mean()
            raise ValueError(f"no such loss: {trial.loss}")

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.tree.map(jnp.copy, params)
    state, losses = optimizer.init(params), []
    rng = np.random.default_rng(jax.random.key_data(key).tolist())
    order = [
        i for _ in range(-(-trial.steps // len(batches))) for i in rng.permutation(len(batches))
    ]
    bar = tqdm(order[: trial.steps], desc=f"{trial.about}, M = {system.latent_steps}")
    for number, chosen in enumerate(bar):
        own = jax.random.fold_in(key, number)
        params, state, loss = step(agents, params, state, batches[chosen], texts[chosen], own)
        losses.append(float(loss))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return params, float(np.mean(losses[-max(1, trial.steps // 10) :])) if losses else None


def started(team: Team, trial: Trial, links: Links, key: Any) -> Params:
    """The parameters before a trial."""
    if not trial.rank:
        return Params(links, None)
    config = TuningConfig(
        kind="lora", rank=trial.rank, alpha=2.0 * trial.rank, learning_rate=trial.rate
    )
    sender = team.agents[evidence.PLANNER]
    return Params(links, start_adapter(sender, config, key=key, vectors=0))


def trained(
    team: Team, trial: Trial, links: Links, known: Known, *, count: int, seed: int
) -> tuple[Params, float | None]:
    """Trains links; returns the parameters, and the mean loss of the last tenth of the steps.

    Args:
      team: with any M.
      trial: what to do.
      links: to start from.
      known: messages of training.
      count: M.
      seed: of the adapter, the order of batches and the noise.
    """
    key = jax.random.key(seed)
    params, loss = started(team, trial, links, key), None
    parts = parts_of(trial, count)
    for number, part in enumerate(parts):
        of_part = with_count(team, part)
        batches, texts = known.batches(of_part), [None] * len(known.prefixes)
        if trial.loss == "states":
            texts = text_states(team, known, part)
        if trial.loss == "words":
            texts = np.split(first_tokens(team, known.asked, part), len(batches))
        of_number = jax.random.fold_in(key, number)
        params, loss = train(of_part, trial, params, batches, of_number, texts)
    return params, loss


def parts_of(trial: Trial, count: int) -> list[int]:
    """M of each part of a training for M = count: of its path, what comes before count; count."""
    steps = [*trial.path, count]
    grows = steps[0] < max(steps)
    before = [part for part in trial.path if part != count and (part < count) == grows]
    return [*before, count] if trial.steps else []


def run_trial(
    team: Team, trial: Trial, links: Links, known: Mapping[str, Known], *, count: int, seed: int
) -> dict[str, Any]:
    """Trains and measures; the row of a trial. `known` has "train" and "validation"."""
    started_at = time.perf_counter()
    params, loss = trained(team, trial, links, known["train"], count=count, seed=seed)
    seconds = time.perf_counter() - started_at
    of_count, exact = with_count(team, count), {}
    for split, of in known.items():
        batches = of.batches(of_count)[: len(known["validation"].prefixes)]
        vectors = sent(of_count, params, batches)
        exact[split] = right(of_count, vectors, batches)
        if split == "validation":
            exact["other"] = right(of_count, np.roll(vectors, 1, axis=0), batches)
    changed = (params.links.inner[evidence.PLANNER], params.links.outer[EDGE], params.adapter)
    return {
        "loss": loss,
        "seconds": seconds,
        "parameters": count_parameters(changed) if trial.steps else 0,
        **summary(exact["validation"]),
        **{name: float(exact[name].mean()) for name in ("train", "other")},
    }


def measure(args: argparse.Namespace) -> None:
    """Adds the rows of trials, and of the text cut to M tokens; writes them after each."""
    config, dials = configured(args)
    settings = own_settings(args, config)
    rows = rows_of_earlier(args.out / REPORT, settings) or {}
    team = load_team(with_steps(config, args.count).system)
    [links] = links_of_seeds(team, config, [args.links])
    known = {}
    for split, items in (("train", args.items), ("validation", args.held_out)):
        asked = questions(dials, seed=args.seed, items=items, split=split)
        known[split] = read_all(team, asked, items // args.batch)

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        print(json.dumps({name: row}), flush=True)
        write_report(args.out / REPORT, {"settings": settings, "rows": rows})

    held = known["validation"]
    cut = np.asarray(message_vectors(team, held.asked, args.count))
    row = summary(right(team, cut, held.batches(team)))
    keep("text", {"about": f"the first {args.count} tokens of the text"} | row)
    for name in args.trials:
        trial = TRIALS[name]
        if (old := rows.get(name)) and defined(old["trial"]) == trial:
            continue
        row = run_trial(team, trial, links, known, count=args.count, seed=args.seed)
        keep(name, {"trial": definition(name), "about": trial.about} | row)


def own_settings(args: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """What all trials of a report have in common."""
    of_options = settings_of(args, config, "count", "items", "held_out", "batch", "seed")
    return {**of_options, "links": digests([args.links])}


def parser() -> Parser:
    """The command line."""
    out = measurement_parser(__doc__)
    out.add_argument("--links", required=True, metavar="FILE", help="links/aligned.safetensors")
    abouts = "; ".join(f"{name}: {trial.about}" for name, trial in TRIALS.items())
    out.add_argument("--trials", nargs="+", choices=TRIALS, default=[*TRIALS], help=abouts)
    add_numbers(
        out,
        ("count", 4, "M"),
        ("items", 480, "messages of training"),
        ("held-out", 128, "messages of validation"),
        ("batch", 8, "messages of a step, a divisor of both numbers"),
        ("seed", 0, "of messages, order and noise"),
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trials and writes the report; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    check_batch(parser(), args, "items", "held-out")
    return measured(args, measure)


if __name__ == "__main__":
    sys.exit(main())
