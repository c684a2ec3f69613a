import jax
import numpy as np
import pytest
from teams import build_team

from rmas_jax.training.batches import batch_rows, encode_dialogues, encode_examples, encode_texts

FIELDS = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}
EXAMPLES = [
    {
        "question": "from a to b",
        "plan": ["plan one", "plan two", "plan three"],
        "refined_plan": ["refined one", "refined two", "refined three"],
        "draft": ["draft one", "draft two", "draft three"],
    },
    {
        "question": "w",
        "plan": ["a", "b", "c"],
        "refined_plan": ["d", "e", "f"],
        "draft": ["g", "h", "i"],
    },
]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))[0]


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    key = jax.random.key(3)
    rows = [np.asarray(batch_rows(key, step, size=12, batch_size=4)) for step in range(6)]
    first, second = np.concatenate(rows[:3]), np.concatenate(rows[3:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_batches_depend_on_key_and_step_alone():
    again = batch_rows(jax.random.key(3), 4, size=12, batch_size=4)
    assert list(again) == list(batch_rows(jax.random.key(3), 4, size=12, batch_size=4))
    assert list(again) != list(batch_rows(jax.random.key(4), 4, size=12, batch_size=4))


def test_role_texts_end_in_the_end_token_and_are_padded_on_the_right(team):
    tokenizer = team.tokenizers["planner"]
    targets = encode_texts(tokenizer, [["from a to b", "w"]])
    assert targets.ids.shape[:2] == (1, 2)
    for row, valid, text in zip(
        targets.ids[0], targets.valid[0], ["from a to b", "w"], strict=True
    ):
        length = valid.sum()
        assert valid[:length].all() and row[length - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[: length - 1]) == text


def test_every_role_has_prompts_and_texts_of_all_items(team):
    data = encode_examples(
        EXAMPLES, team.tokenizers, team.prompts, text_fields=FIELDS, slot_width=3
    )
    assert len(data) == 2
    assert set(data.prompts) == set(data.targets) == set(FIELDS)
    one = data.rows(np.array([1]))
    assert len(one) == 1
    np.testing.assert_array_equal(one.targets["critic"].ids[0], data.targets["critic"].ids[1])


@pytest.mark.parametrize(
    ("role", "received"),
    [
        ("planner", [None, "draft one", "draft two"]),  # feedback: the round before
        ("critic", ["plan one", "plan two", "plan three"]),  # the same round
        ("solver", ["refined one", "refined two", "refined three"]),
    ],
)
def test_a_dialogue_holds_what_was_sent_and_ends_in_the_role_text(team, role, received):
    tokenizer = team.tokenizers[role]
    dialogues = encode_dialogues(
        EXAMPLES,
        tokenizer,
        team.prompts[role],
        topology=team.system.topology,
        role=role,
        text_fields=FIELDS,
        rounds=3,
    )
    assert len(dialogues.ids) == 3 * len(EXAMPLES)
    for r, message in enumerate(received):
        row = len(EXAMPLES) * r  # the first item
        text = tokenizer.decode(dialogues.ids[row][dialogues.valid[row]])
        wanted = tokenizer.decode(dialogues.ids[row][dialogues.target[row]])
        assert wanted == EXAMPLES[0][FIELDS[role]][r] + tokenizer.eos_token
        assert "from a to b" in text
        others = {"draft one", "draft two", "draft three", "plan one", "plan two"} - {message}
        assert message is None or message in text
        assert not any(other in text.replace(wanted, "") for other in others - {wanted})
