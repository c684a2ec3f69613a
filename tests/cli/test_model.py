"""The command `rmas model` on a tiny checkpoint with a tokenizer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file
from systems import CONFIGS, naive_text

from rmas_jax.agents.agent import load_agent
from rmas_jax.cli.model import main
from rmas_jax.models import Decoder, load_pretrained, save_pretrained
from rmas_jax.models.int8 import dequantised, is_quantised

CONFIG = CONFIGS["planner"]
PROMPT = "w3 w1 w4 w1 w5"
TOKENS = 8
MIB = 2**20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model whose tokens are the words w0, w1, ...; a turn is framed by w35 and w36."""
    directory = tmp_path_factory.mktemp("checkpoint")
    model = Decoder(CONFIG)
    embeds = jnp.zeros((1, 1, CONFIG.width))
    params = jax.jit(model.init)(jax.random.key(0), embeds, jnp.ones((1, 1), bool))["params"]
    params = jax.tree.map(lambda x: x * 15 if x.ndim > 2 or x.shape[0] == 37 else x, params)
    save_pretrained(directory, model, params)

    vocab = {f"w{i}": i for i in range(CONFIG.vocab_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "w0"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")
    tokenizer.chat_template = "w35 {{ messages[0]['content'] }} w36"
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def call(capsys):
    """Runs the command; returns its exit code, what it said and what it complained of."""

    def run(path, *options, prompt=PROMPT):
        code = main([str(path), "--prompt", prompt, "--max-tokens", str(TOKENS), *options])
        return code, *capsys.readouterr()

    return run


def words(said):
    """Ids of the text, which is the last line."""
    return [int(word.removeprefix("w")) for word in said.strip().splitlines()[-1].split()]


def expected(agent, ids):
    rows = [np.asarray(agent.params["embedding"])[ids]]
    return naive_text(agent, rows, TOKENS)[0].tolist()


def test_it_says_what_it_loaded_and_answers(checkpoint, call):
    code, said, complaint = call(checkpoint)
    assert (code, complaint) == (0, "")
    _, params = load_pretrained(checkpoint)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert f"qwen3: {CONFIG.num_layers} layers, width {CONFIG.width}" in said
    assert f"{count:,} parameters, float32, {count * 4 / MIB:,.1f} MiB, loaded in" in said
    assert f"1 x cpu (cpu), {count * 4 / MIB:,.1f} MiB on the fullest; 0 of" in said
    assert "greedy=True; ends at [], at most 8 tokens" in said
    assert re.search(r"compiled in \d+\.\d s; read 7 tokens in .*, wrote 8 in ", said)
    assert words(said) == expected(load_agent(checkpoint), [35, 3, 1, 4, 1, 5, 36])


def test_raw_prompt_and_end_token(copy, call):
    free = expected(load_agent(copy), [3, 1, 4, 1, 5])
    end = next(token for token in free[1:] if token != free[0])
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 36]}))
    (copy / "chat_template.jinja").unlink()
    code, said, complaint = call(copy)
    assert code == 2 and "must have a chat template" in complaint
    code, said, _ = call(copy, "--raw", "--dtype", "bfloat16")
    assert code == 0 and "bfloat16" in said and "read 5 tokens" in said
    assert f"ends at [{end}, 36]" in said
    code, said, _ = call(copy, "--raw")
    assert words(said) == free[: free.index(end) + 1]


def test_hidden_states_beyond_float16_end_in_one_message(copy, call):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 6e4)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    for dtype in ("float32", "bfloat16"):
        assert call(copy, "--raw", "--dtype", dtype)[0] == 0
    code, _, complaint = call(copy, "--raw", "--dtype", "float16")
    assert code == 2 and complaint.count("\n") == 1
    assert complaint.startswith("error: the model's logits for new token 1 are NaN or infinite")
    assert "65,504 in float16; use --dtype float32 or bfloat16" in complaint


def test_a_base_model_goes_on_from_the_prompt_as_it_stands(copy, call):
    (copy / "chat_template.jinja").unlink()
    code, said, complaint = call(copy)
    assert (code, said) == (2, "") and complaint.count("\n") == 1
    assert f"{copy}: the tokenizer must have a chat template" in complaint and "--raw" in complaint
    code, said, complaint = call(copy, "--raw")
    assert (code, complaint) == (0, "") and words(said) == expected(
        load_agent(copy), [3, 1, 4, 1, 5]
    )


def test_a_base_model_reads_a_turn_in_a_named_template(copy, call):
    (copy / "chat_template.jinja").unlink()
    code, said, complaint = call(copy, "--chat-template", "plain")
    assert (code, complaint) == (0, "")
    # Words that the vocabulary lacks are w0: User: PROMPT Assistant:
    assert words(said) == expected(load_agent(copy), [0, 3, 1, 4, 1, 5, 0])
    file = copy / "mine.jinja"
    file.write_text("w35 {{ messages[0]['content'] }} w36")
    code, said, _ = call(copy, "--chat-template", str(file))
    assert words(said) == expected(load_agent(copy), [35, 3, 1, 4, 1, 5, 36])
    for options, message in (
        (["--chat-template", "plane"], "--chat-template must be a path to a jinja file or one of"),
        (["--chat-template", "plain", "--raw"], "--raw and --chat-template: choose one"),
        ([], "--chat-template names one (plain, or a jinja file), and --raw continues"),
    ):
        code, _, complaint = call(copy, *options)
        assert code == 2 and message in complaint and complaint.count("\n") == 1


def with_tokenizer(copy, **parts):
    """Changes parts of the tokenizer's file."""
    file = copy / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def marker(word, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": int(word[1:]), "content": word, "special": special, **flags}


def test_a_raw_prompt_stands_behind_what_the_tokenizer_puts_before_every_text(copy, call):
    single = [{"SpecialToken": {"id": "w2", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    first = {"w2": {"id": "w2", "ids": [2], "tokens": ["w2"]}}
    post = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": first}
    with_tokenizer(copy, post_processor=post, added_tokens=[marker("w36", special=True)])
    code, said, _ = call(copy, "--raw", prompt="w3 w36")  # a marker of one's own is obeyed
    assert code == 0 and words(said) == [
        word for word in expected(load_agent(copy), [2, 3, 36]) if word
    ]


def test_markers_in_a_prompt_are_only_letters(copy, call):
    with_tokenizer(copy, added_tokens=[marker("w36", special=False)])
    code, said, _ = call(copy, prompt="w3 w36 w4")  # the word is unknown without its token: w0
    assert code == 0 and words(said) == expected(load_agent(copy), [35, 3, 0, 4, 36])


def test_the_date_of_a_template_is_an_option(copy, call):
    template = "w35 w{{ strftime_now('%d') | int }} {{ messages[0]['content'] }} w36"
    (copy / "chat_template.jinja").write_text(template)
    code, said, _ = call(copy, "--date", "2024-02-29")
    assert code == 0 and words(said) == expected(load_agent(copy), [35, 29, 3, 1, 4, 1, 5, 36])
    for date in ("2026-02-30", "today", ""):
        code, said, complaint = call(copy, "--date", date)
        assert (code, said) == (2, "")
        assert complaint == f"error: --date must be a day as YYYY-MM-DD, got {date!r}\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{{ 'w1 ' * 10**10 }}", "exceeds the memory limit"),
        ("{{ raise_exception('no') }}", "it failed: no"),
        ("w1", "leaves out the text"),
        ("{% endif %}", "Encountered unknown tag"),
        ("\udcff", "must be text in UTF-8"),
    ],
)
def test_chat_templates_that_cannot_be_used_end_in_one_line(copy, call, template, message):
    file = copy / "chat_template.jinja"
    file.write_bytes(template.encode(errors="surrogateescape"))
    code, said, complaint = call(copy)
    assert (code, said) == (2, "") and complaint.count("\n") == 1
    assert message in complaint and str(copy) in complaint


def test_a_prompt_that_is_no_unicode_is_named(checkpoint, call):
    for options in ([], ["--raw"]):
        code, said, complaint = call(checkpoint, *options, prompt="w1 \udcff")
        assert (code, said) == (2, "") and complaint.count("\n") == 1
        assert complaint.startswith("error: --prompt must be Unicode without lone surrogates")


def test_devices_of_a_mesh_share_the_weights(checkpoint, call):
    code, said, _ = call(checkpoint, "--mesh", "1,4,2")
    assert code == 0
    assert re.search(r"8 x cpu \(cpu\), .* MiB on the fullest; [1-9]\d* of \d+ arrays are", said)
    assert words(said) == expected(load_agent(checkpoint), [35, 3, 1, 4, 1, 5, 36])


def test_matrices_may_be_in_int8(checkpoint, call):
    code, said, _ = call(checkpoint, "--weights", "int8")
    _, params = load_pretrained(checkpoint)
    count = sum(x.size for x in jax.tree.leaves(params))  # scales are no parameters
    assert code == 0 and f"{count:,} parameters, float32, int8, " in said
    agent = load_agent(checkpoint, weights="int8")
    agent = agent.replace(params=jax.tree.map(dequantised, agent.params, is_leaf=is_quantised))
    assert words(said) == expected(agent, [35, 3, 1, 4, 1, 5, 36])


def test_rules_come_from_the_checkpoint_and_from_the_command_line(copy, call):
    rules = {"do_sample": True, "temperature": 1.5, "top_k": 9, "repetition_penalty": 1.2}
    (copy / "generation_config.json").write_text(json.dumps(rules))
    _, first, _ = call(copy)
    assert "temperature=1.5, top_k=9, top_p=1.0, min_p=0.0, repetition_penalty=1.2;" in first
    _, again, _ = call(copy)
    _, other, _ = call(copy, "--seed", "1")
    assert words(first) == words(again) != words(other)
    _, said, _ = call(copy, "--greedy", "--repetition-penalty", "1")
    assert words(said) == expected(load_agent(copy), [35, 3, 1, 4, 1, 5, 36])
    _, said, _ = call(copy, "--top-p", "0.5", "--temperature", "0.3")
    assert "temperature=0.3, top_k=9, top_p=0.5," in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-tokens", "0"], "--max-tokens must be at least 1 and at most 131,072, got 0"),
        (["--temperature", "-1"], "temperature must be a number of at least 0, got -1.0"),
        (["--temperature", "1", "--top-p", "2"], "top_p must be a number from 0 to 1, got 2.0"),
        (
            ["--greedy", "--temperature", "1"],
            "--temperature must be 0 or unset with --greedy, got 1.0",
        ),
        (["--top-k", "5"], "--temperature must be above 0 with --top-k, got greedy decoding"),
        (["--raw", "--prompt", ""], "--prompt must have at least one token, got ''"),
        (["--mesh", "2"], "--mesh must be three sizes, such as 1,1,8, got '2'"),
        (["--mesh", "1,1,3"], "the product of mesh sizes must be the number of devices ("),
    ],
)
def test_options_that_do_not_fit_end_in_one_line(checkpoint, call, options, message):
    code, said, complaint = call(checkpoint, *options)
    assert (code, said) == (2, "")
    assert complaint.startswith(f"error: {message}") and complaint.count("\n") == 1


def test_checkpoints_that_do_not_load_end_in_one_line(copy, call):
    for path, message in (
        (copy / "nowhere", "no such directory, and not available from the hub"),
        (copy / "config.json", "must be a directory or a hub id, got a file"),
    ):
        code, said, complaint = call(path)
        assert (code, said) == (2, "") and complaint.count("\n") == 1
        assert complaint.startswith(f"error: {path}: {message}")
    (copy / "generation_config.json").write_text('{"num_beams": 4}')
    assert "num_beams must be 1 (not supported), got 4\n" in call(copy)[2]
    (copy / "generation_config.json").unlink()
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {"model_type": "mamba"}))
    code, said, complaint = call(copy, "--raw")
    assert (code, said) == (2, "") and "got 'mamba'" in complaint


def test_a_text_past_the_limit_of_its_rotation_ends_in_one_line(copy, call):
    raw = json.loads((copy / "config.json").read_text())
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    (copy / "config.json").write_text(json.dumps(raw | dynamic | {"max_position_embeddings": 8}))
    code, _, complaint = call(copy, "--raw")  # 5 tokens of the prompt and 7 that are read again
    assert code == 2 and complaint.count("\n") == 1
    assert "at most 8 positions (max_position_embeddings" in complaint
    assert "got 12: beyond" in complaint


def test_the_command_line_itself(tmp_path):
    command = [sys.executable, "-m", "rmas_jax.cli", "model"]
    done = subprocess.run(
        [*command, str(tmp_path), "--prompt", "x"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'config.json'}: no such file\n"


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for word in ("examples:", "generation_config.json", "--raw", "--min-p", "hub id", "--greedy"):
        assert word in said
    with pytest.raises(SystemExit) as stop:
        main(["somewhere"])
    assert stop.value.code == 2
