"""Ids that an embedding lacks: refused where they come from, for every way into a run."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, random_params
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from rmas_jax.agents.stop_strings import stop_table
from rmas_jax.cli.ask import main as ask
from rmas_jax.cli.model import main as show_model
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.models import CheckpointError, Decoder
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.models.vocabulary import check_array, check_ids, check_tokenizer, usable_ends
from rmas_jax.rounds.recursion import Unroll, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.team import load_team

CONFIG = "quickstart"
ROWS = 604  # of the planner's embedding
NEW = "<new>"


@pytest.fixture
def planner(tmp_path):
    return shutil.copytree("rmas_jax/assets/embedded/planner", tmp_path / "planner")


def add_token(directory, *, special):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([AddedToken(NEW, special=special)], special_tokens=special)
    assert tokenizer.convert_tokens_to_ids(NEW) == ROWS
    tokenizer.save_pretrained(directory)


def edit_json(path, edit):
    raw = json.loads(path.read_text()) if path.exists() else {}
    edit(raw)
    path.write_text(json.dumps(raw))


def ordinary_token(directory):
    """A token was added to the tokenizer, the embedding never resized."""
    add_token(directory, special=False)


def token_of_the_template(directory):
    """The same with a special token that the chat template puts before every turn."""
    add_token(directory, special=True)
    path = directory / "chat_template.jinja"
    path.write_text(NEW + path.read_text())


def smaller_embedding(directory):
    """The tokenizer of another model: tokens of its base vocabulary lie beyond the embedding."""
    edit_json(directory / "config.json", lambda raw: raw.update(vocab_size=ROWS - 1))


def end_of_turn(directory):
    """What the template puts behind an answer lies beyond."""
    add_token(directory, special=True)
    path = directory / "tokenizer_config.json"
    edit_json(path, lambda raw: raw.update(eos_token=NEW))
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>\n{% endfor", NEW + "\n{% endfor"))


BEYOND = {
    ordinary_token: f"(rows of the embedding), got '{NEW}' (id {ROWS})",
    token_of_the_template: f"'{NEW}' (id {ROWS})",
    smaller_embedding: f"(id {ROWS - 1})",
    end_of_turn: f"'{NEW}' (id {ROWS})",
}


def team_of(directory):
    return load_team(load_config(CONFIG, [f"system.agents.planner={directory}"]).system)


@pytest.mark.parametrize("damage", BEYOND, ids=lambda damage: damage.__name__)
def test_a_team_is_refused_before_weights_are_read(planner, damage):
    damage(planner)
    (planner / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match="rows of the embedding") as error:
        team_of(planner)
    message = str(error.value)
    assert str(planner) in message and BEYOND[damage] in message
    assert "resize_token_embeddings" in message and len(message) < 1000


@pytest.mark.parametrize("damage", BEYOND, ids=lambda damage: damage.__name__)
def test_the_commands_say_so_once(planner, tmp_path, capsys, damage):
    damage(planner)
    set_agent = f"system.agents.planner={planner}"
    common = ["--config", CONFIG, "--set", f"output_dir={tmp_path}", "--set", set_agent]
    assert ask([*common, "--channel", "text", "Where?"]) == BAD_INPUT
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and BEYOND[damage] in said.err
    assert show_model([str(planner), "--prompt", "Where?"]) == BAD_INPUT
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and BEYOND[damage] in said.err


def test_a_special_token_that_nothing_writes_may_lack_a_row(planner):
    """As in Gemma-3's text checkpoints, whose tokenizer has a token for images."""
    add_token(planner, special=True)
    team = team_of(planner)
    tokenizers = [member.tokenizer for member in team.members.values()]
    assert len(tokenizers[0]) == ROWS + 1
    prompt = team.encode([f"what is {NEW} ?", "what is it ?"])["planner"]
    assert max(prompt.prefix_ids.max(), prompt.body_ids.max()) < ROWS
    shared, _ = shared_tokens(*tokenizers[:2])
    assert len(shared) > 100 and shared.max() < ROWS
    same = team_of("rmas_jax/assets/embedded/planner")
    for ours, theirs in zip(
        jax.tree.leaves(team.agents["planner"]),
        jax.tree.leaves(same.agents["planner"]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    for role, member in team.members.items():
        assert member.end_tokens == same.members[role].end_tokens


def test_end_tokens_that_cannot_be_written_end_nothing(planner):
    path = planner / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, ROWS + 50, 10**12]}))
    assert team_of(planner).members["planner"].end_tokens == (2,)
    tokenizer = AutoTokenizer.from_pretrained(planner)
    beyond = {"tokenizer": tokenizer, "source": "m"}
    assert usable_ends((700, 2), ROWS, **beyond) == (2,) and usable_ends((), ROWS, **beyond) == ()
    with pytest.raises(
        CheckpointError, match=r"m: end tokens must have ids .*, got None \(id 700\)"
    ):
        usable_ends((700, 10**400), ROWS, **beyond)


def test_many_tokens_beyond_are_counted(planner):
    tokenizer = AutoTokenizer.from_pretrained(planner)
    with pytest.raises(
        CheckpointError, match=r"got .* \(id 10\), .*, and 589 more; resize"
    ) as error:
        check_tokenizer(tokenizer, 10, source="m")
    assert len(str(error.value)) < 600
    check_ids([0, 9], 10, tokenizer=tokenizer, what="prompt")
    with pytest.raises(CheckpointError, match=r"prompt must have ids .*, got None \(id -1\)"):
        check_ids([0, -1], 10, tokenizer=tokenizer, what="prompt")


# --- Arrays made by hand --------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [37, -1, 2**31 - 1])
@pytest.mark.parametrize("place", ["prefix_ids", "body_ids", "target"])
def test_rounds_over_ids_without_a_row_are_refused(tiny_system, place, beyond):
    tiny = tiny_system
    system, prompts = tiny.system, tiny.prompts()
    ids = np.zeros((3, 1, 2), np.int32)
    targets = {"critic": Targets(ids=ids, valid=np.ones(ids.shape, bool))}
    if place == "target":
        targets["critic"].ids[0, 0, 1] = beyond
    else:
        prompts["critic"] = prompts["critic"].replace(
            **{place: np.full_like(getattr(prompts["critic"], place), beyond)}
        )
    with pytest.raises(
        CheckpointError, match=rf"critic: token id must be from 0 to 36 .*, got {beyond};"
    ):
        run_rounds(system, tiny.agents, None, prompts, Unroll(rounds=1), Supervision(targets))
    if place != "target":
        with pytest.raises(
            CheckpointError, match=rf"critic: token id must be from 0 to 36 .*, got {beyond};"
        ):
            trace_rounds(system, tiny.agents, None, prompts, rounds=1)


def test_an_embedding_has_no_rows_beyond_its_last():
    config = CONFIGS["planner"]
    model, params = Decoder(config), {"params": random_params(config, 0)}
    for ids in (np.array([[3, 37]]), jnp.array([[-1, 3]])):
        with pytest.raises(
            CheckpointError, match=r"token id must be from 0 to 36 \(rows of the embedding\)"
        ):
            model.apply(params, ids, method="embed")
    assert model.apply(params, np.array([[0, 36]]), method="embed").shape == (1, 2, 16)
    check_array(np.zeros((0, 3), np.int32), 37)


# --- Vocabularies with gaps -----------------------------------------------------------------------


def test_a_stop_table_covers_ids_behind_a_gap():
    vocabulary = {"a": 0, "b": 1, "</x>": 7}
    inner = Tokenizer(models.WordLevel(vocabulary, "a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="a")
    table = stop_table(tokenizer, ("</x>",))
    assert table.shape[1] == 8 and table[0, 7] == len(table) - 1
    np.testing.assert_array_equal(table[:, 2:7], np.arange(len(table))[:, None].repeat(5, 1))
