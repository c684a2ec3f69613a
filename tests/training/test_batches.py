import dataclasses
import threading
from typing import ClassVar

import flat
import jax
import numpy as np
import pytest
from systems import build_pattern
from teams import build_team

from rmas_jax.config import ConfigError, PhaseConfig
from rmas_jax.data import Example
from rmas_jax.prompts import tiled_width
from rmas_jax.rounds.supervision import Targets
from rmas_jax.sharding import local_rows, make_mesh, put_batch
from rmas_jax.training.data.batches import BUCKETS, Batches, length_groups
from rmas_jax.training.data.encoding import (
    encode_dialogues,
    encode_examples,
    encode_texts,
    pad_texts,
)
from rmas_jax.training.outer.step import outer_loss

ROLES = ("planner", "critic", "solver")
EXAMPLES = [
    Example(
        "0",
        "from a to b",
        "draft three",
        texts={
            "planner": ("plan one", "plan two", "plan three"),
            "critic": ("refined one", "refined two", "refined three"),
            "solver": ("draft one", "draft two", "draft three"),
        },
    ),
    Example("1", "w", "i", texts=dict(zip(ROLES, ("abc", "def", "ghi"), strict=True))),
]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))[0]


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def ragged(tiny):
    """Items of many lengths: prompts and role texts."""
    questions = [" ".join(["parcel"] * n) for n in (1, 2, 60, 3, 1, 25, 70, 2, 30, 1, 12, 2)]
    random, shape = np.random.default_rng(0), (len(questions), 2, 24)
    targets = {}
    for role in tiny.agents:
        lengths = random.integers(4, 25, (*shape[:2], 1)) // (
            1 + (np.arange(12) % 3)[:, None, None]
        )
        valid = np.arange(24) < lengths
        targets[role] = Targets(
            ids=np.where(valid, random.integers(1, 37, shape), 0).astype(np.int32), valid=valid
        )
    return flat.encoded_items(tiny.prompt_tokens(questions), targets)


def test_an_epoch_visits_every_row_once_and_epochs_differ(ragged):
    batches = Batches(ragged, batch_size=1, key=jax.random.key(3))
    assert batches.steps_per_epoch == 12
    rows = np.concatenate([batches.rows(step) for step in range(24)])
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert list(rows[:12]) != list(rows[12:])


def test_batches_depend_on_key_and_step_alone(ragged):
    one, same = (Batches(ragged, batch_size=4, key=jax.random.key(3)) for _ in range(2))
    wanted = [one.rows(step).tolist() for step in range(9)]
    assert [same.rows(step).tolist() for step in (7, 2, 8)] == [wanted[i] for i in (7, 2, 8)]
    other = Batches(ragged, batch_size=4, key=jax.random.key(4))
    assert [other.rows(step).tolist() for step in range(9)] != wanted


def test_every_row_of_a_group_is_seen_equally_often_up_to_one(ragged):
    """Also where a group is just too small for another batch: 7 rows in batches of 4."""
    ragged = ragged.rows(np.array([2, 6, 2, 6, 0, 1, 3, 4, 5, 7, 9]))
    batches = Batches(ragged, batch_size=4, key=jax.random.key(3))
    assert [len(group) for group in batches.groups] == [4, 7]
    seen = np.zeros(11, int)
    for step in range(400):
        rows = batches.rows(step)
        assert any(np.isin(rows, group).all() for group in batches.groups)
        np.add.at(seen, rows, 1)
        for group in batches.groups:
            assert np.ptp(seen[group]) <= 1
    assert seen.sum() == 1600
    np.testing.assert_allclose(seen, 1600 / 11, rtol=0.02)  # every group has its share, too


def test_groups_take_turns_by_their_sizes(ragged):
    batches = Batches(ragged, batch_size=1, key=jax.random.key(3))
    assert len(batches.groups) > 2
    turns = np.array(
        [[np.isin(batches.rows(s), group).all() for group in batches.groups] for s in range(120)]
    )
    assert (turns.sum(axis=1) == 1).all()
    wanted = np.arange(1, 121)[:, None] * [len(group) / 12 for group in batches.groups]
    assert np.abs(np.cumsum(turns, axis=0) - wanted).max() < len(batches.groups)


def test_an_epoch_reads_as_many_rows_as_there_are_the_last_step_rounded_up(ragged):
    for size, steps in [(1, 12), (4, 3), (5, 3), (12, 1)]:
        assert Batches(ragged, batch_size=size, key=jax.random.key(3)).steps_per_epoch == steps


def test_the_longest_batch_has_the_largest_shapes_of_any(ragged):
    def size(batch):
        return sum(leaf.size for leaf in jax.tree.leaves(batch))

    batches = Batches(ragged, batch_size=2, key=jax.random.key(3))
    sizes = {size(batches[step]) for step in range(60)}
    assert len(sizes) == len(batches.groups)
    assert size(batches.longest()) == max(sizes)


def test_batches_that_are_read_ahead_are_those_of_the_steps(ragged):
    batches = Batches(ragged, batch_size=4, key=jax.random.key(3))
    with batches.read_ahead(5, 11) as ahead:
        read = list(ahead)
    assert len(read) == 6
    for step, batch in enumerate(read, start=5):
        jax.tree.map(np.testing.assert_array_equal, batch, batches[step])
    with batches.read_ahead(5, 5) as ahead:
        assert list(ahead) == []


def test_reading_ahead_ends_with_the_loop_even_if_that_breaks_off(ragged):
    batches = Batches(ragged, batch_size=4, key=jax.random.key(3))
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), batches.read_ahead(0, 1000) as ahead:
        next(ahead)
        started = set(threading.enumerate()) - before
        raise KeyboardInterrupt
    assert started
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)


def test_rows_of_like_length_are_read_together():
    lengths = np.array([100, 51, 50, 26, 25, 13, 12, 1])
    groups = length_groups(lengths, 1)
    assert [lengths[rows].tolist() for rows in groups] == [[100, 51], [50, 26], [25, 13], [12, 1]]
    # Too few for a batch: they join longer rows, and the longest join shorter ones.
    lengths = np.array([100, 40, 40, 20, 10, 10, 10])
    assert [sorted(lengths[r].tolist()) for r in length_groups(lengths, 3)] == [
        [20, 40, 40, 100],
        [10, 10, 10],
    ]
    assert len(length_groups(2 ** np.arange(20), 1)) == BUCKETS


@pytest.mark.parametrize("text_width", [0, 16, 99])
def test_batches_are_the_rows_of_a_rectangle_in_the_tiled_widths_of_their_group(ragged, text_width):
    whole, seen = ragged.batch(), set()
    batches = Batches(ragged, batch_size=2, key=jax.random.key(0), text_width=text_width)
    assert ragged.lengths.tolist() == flat.row_lengths(whole).tolist()
    for step in range(12):
        rows, batch = batches.rows(step), batches[step]
        group = next(i for i, group in enumerate(batches.groups) if rows[0] in group)
        flat.check_same(flat.trim(batch), flat.trim(whole.rows(rows)))
        longest = flat.trim(whole.rows(batches.groups[group]), text_width=text_width)
        for role, prompt in batch.prompts.items():
            width = longest.prompts[role].prefix_ids.shape[1]
            assert prompt.prefix_ids.shape[1] == tiled_width(width)
            width = longest.targets[role].ids.shape[2]
            assert batch.targets[role].ids.shape[2] == tiled_width(width)
        seen.add(group)
    assert len(seen) == len(batches.groups) > 1


def test_other_splits_of_like_items_need_few_other_programs(ragged):
    """Every group of rows has its shapes, and a step one program for each."""
    exact, tiled = set(), set()
    splits = [ragged.rows(np.delete(np.arange(12), left_out)) for left_out in range(12)]
    for split in splits:
        groups = Batches(split, batch_size=2, key=jax.random.key(0)).groups
        exact |= {repr(split.widths(group)) for group in groups}
        tiled |= {repr(split.widths(group, is_tiled=True)) for group in groups}
    assert len(tiled) == 5 and len(exact) == 8


def test_a_long_item_takes_its_own_tokens_and_pads_no_other(ragged):
    def held(items):
        rows = [*items.texts.values()]
        for prompt in items.prompts.values():
            rows += [prompt.prefix, *(kind for block in prompt.blocks for kind in block)]
        return sum(of.ids.nbytes for of in rows)

    def padded(items):
        return sum(array.nbytes for array in jax.tree.leaves(items.batch()))

    short, long = ragged.rows([0] * 100), ragged.rows([0] * 99 + [6])
    tokens = ragged.lengths[6] - ragged.lengths[0]
    assert held(long) - held(short) == 4 * tokens
    assert padded(long) - padded(short) > 100 * 4 * tokens  # the control


def test_a_process_pads_and_puts_the_rows_of_its_devices_alone(ragged):
    """Devices of another process are those beside the mesh of this one."""
    mesh = make_mesh(4, 2)
    batches = Batches(ragged, batch_size=8, key=jax.random.key(3), mesh=mesh)
    assert len(batches[0]) == 8  # one process holds all devices
    assert local_rows(8, mesh).tolist() == list(range(8))
    assert local_rows(6, mesh).tolist() == list(range(6))  # does not divide: whole everywhere
    on_mesh = put_batch(batches[0], mesh, rows=8)
    flat.check_same(jax.device_get(on_mesh), ragged.batch(batches.rows(0), batches._widths[0]))


def test_fewer_items_than_a_batch_are_refused(ragged):
    with pytest.raises(ValueError, match="at most the number of training items, 12, got 13"):
        Batches(ragged, batch_size=13, key=jax.random.key(0))


def test_rows_with_short_texts_are_left_out_where_thoughts_are_taken_from_texts(ragged):
    whole = ragged.batch()
    lengths = np.min([t.valid.sum(-1).min(-1) for t in whole.targets.values()], axis=0)
    least = int(np.median(lengths)) + 1
    options = {"batch_size": 2, "key": jax.random.key(0), "text_width": least}
    batches = Batches(ragged, **options, needs_texts=True)
    assert 0 < batches.left_out == (lengths < least).sum()
    read = {row for step in range(40) for row in batches.rows(step)}
    assert read == set(np.flatnonzero(lengths >= least))
    np.testing.assert_array_equal(
        batches[0].prompts["expert"].prefix_valid.sum(1),
        whole.prompts["expert"].prefix_valid[batches.rows(0)].sum(1),
    )
    assert Batches(ragged, **options).left_out == 0
    with pytest.raises(ConfigError, match="12 with texts of fewer than 99 tokens left out"):
        Batches(ragged, **options | {"text_width": 99}, needs_texts=True)


@pytest.mark.parametrize("latents", ["on_policy", "teacher_forced"])
def test_a_batch_is_worth_the_same_rows_padded_to_the_longest(tiny, ragged, latents):
    phase = PhaseConfig(
        name="tiny",
        latents=latents,
        rounds=2,
        steps=1,
        batch_size=2,
        learning_rate=1e-3,
        role_text_weight=1.0,
    )
    width = tiny.system.latent_steps
    batches = Batches(ragged, batch_size=2, key=jax.random.key(0), text_width=width)
    assert len(batches.groups) > 1
    step = next(s for s in range(6) if batches.rows(s)[0] in batches.groups[-1])
    rows, batch, whole = batches.rows(step), batches[step], ragged.batch()
    assert batch.prompts["learner"].body_ids.shape < whole.prompts["learner"].body_ids.shape

    @jax.jit
    def loss(batch):
        return outer_loss(tiny.system, phase, tiny.agents, tiny.links, batch)[0]

    np.testing.assert_allclose(loss(batch), loss(whole.rows(rows)), rtol=1e-6, atol=1e-6)
    assert abs(loss(whole.rows(rows - 1)) - loss(batch)) > 1e-3  # the control


def test_role_texts_end_in_the_end_token_and_are_padded_on_the_right(team):
    tokenizer = team.members["planner"].tokenizer
    texts = encode_texts(tokenizer, [["from a to b", "w"]], tokenizer.eos_token_id)
    targets = pad_texts(texts, np.arange(2), texts.lengths.max(), rounds=2)
    assert targets.ids.shape[:2] == (1, 2)
    for row, valid, text in zip(
        targets.ids[0], targets.valid[0], ["from a to b", "w"], strict=True
    ):
        length = valid.sum()
        assert valid[:length].all() and row[length - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[: length - 1]) == text


def test_every_role_has_prompts_and_texts_of_all_items(team):
    ends = {role: i for i, role in enumerate(ROLES)}
    members = {
        role: dataclasses.replace(member, end_tokens=(ends[role], 9))
        for role, member in team.members.items()
    }
    items = encode_examples(dataclasses.replace(team, members=members), EXAMPLES)
    data = items.batch()
    for role, target in data.targets.items():
        last = target.valid.sum(axis=-1, keepdims=True) - 1
        assert (np.take_along_axis(target.ids, last, axis=-1) == ends[role]).all()
    assert len(items) == len(data) == 2
    assert set(data.prompts) == set(data.targets) == set(ROLES)
    one = items.rows(np.array([1]))
    assert len(one) == 1
    flat.check_same(one.batch(), flat.trim(data.rows(np.array([1]))))


@pytest.mark.parametrize(
    ("role", "received"),
    [
        ("planner", [None, "draft one", "draft two"]),  # feedback: the round before
        ("critic", ["plan one", "plan two", "plan three"]),  # the same round
        ("solver", ["refined one", "refined two", "refined three"]),
    ],
)
def test_a_dialogue_holds_what_was_sent_and_ends_in_the_role_text(team, role, received):
    member = team.members[role]
    tokenizer = member.tokenizer
    dialogues = encode_dialogues(EXAMPLES, member, topology=team.system.topology, rounds=3)
    assert dialogues.rows.tolist() == list(range(3 * len(EXAMPLES)))  # no two are the same
    assert len(dialogues.tokens) == 3 * len(EXAMPLES)
    for r, message in enumerate(received):
        row = len(EXAMPLES) * r  # the first item
        ids = dialogues.tokens[row]
        text = tokenizer.decode(ids)
        wanted = tokenizer.decode(ids[-dialogues.text_lengths[row] :])
        assert wanted == EXAMPLES[0].texts[role][r] + tokenizer.eos_token
        assert "from a to b" in text
        others = {"draft one", "draft two", "draft three", "plan one", "plan two"} - {message}
        assert message is None or message in text
        assert not any(other in text.replace(wanted, "") for other in others - {wanted})


@pytest.mark.parametrize(
    ("role", "rows"),
    [
        ("planner", [0, 1, 2, 3, 2, 3]),  # no feedback in the first round
        ("critic", [0, 1, 0, 1, 0, 1]),  # here its prompt is the same in all rounds
    ],
)
def test_a_dialogue_that_rounds_share_is_there_once(team, role, rows):
    examples = [
        dataclasses.replace(
            example, texts={role: texts[:1] * 3 for role, texts in example.texts.items()}
        )
        for example in EXAMPLES
    ]
    member = team.members[role]
    tokenizer = member.tokenizer
    if role == "critic":
        same = dataclasses.replace(member.template, first=member.template.later)
        member = dataclasses.replace(member, template=same)
    dialogues = encode_dialogues(examples, member, topology=team.system.topology, rounds=3)
    assert len(dialogues.tokens) == max(rows) + 1
    assert dialogues.rows.tolist() == rows
    texts = [
        tokenizer.decode(ids[-length:])
        for ids, length in zip(dialogues.tokens, dialogues.text_lengths, strict=True)
    ]
    for row, example in zip(rows, 3 * examples, strict=True):
        assert texts[row] == example.texts[role][0] + tokenizer.eos_token


def test_a_text_that_rounds_share_is_tokenised_once(team):
    read = []

    class Noting:
        added_tokens_decoder: ClassVar[dict] = {}

        def __call__(self, texts, **options):
            read.extend(texts)
            return team.members["planner"].tokenizer(texts, **options)

    rows = [row.tolist() for row in encode_texts(Noting(), [["from a to b"] * 3, ["w"] * 3], 0)]
    assert read == ["from a to b", "w"]
    assert rows == [rows[0]] * 3 + [rows[3]] * 3 and rows[0] != rows[3]
