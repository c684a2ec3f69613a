"""A text that is passed on in parts is the text of the same tokens at once."""

import random

import pytest
from teams import QUESTIONS, build_team

from rmas_jax.agents.stop_strings import before_stop
from rmas_jax.agents.text_stream import TextStream, TokenTexts

TEXTS = (
    "where does the parcel end ?",
    " from a to b\n\n",
    "naïve café, 日本語 and 🙂🙂 end",
    "the \ufffd sign, a a a a",
    "User: the User\nuser : from",
)


@pytest.fixture(scope="module", params=["planner", "critic", "solver"])
def texts(request, tmp_path_factory):
    """Of tokenizers of three kinds; one has tokens for bytes, which may change the text before."""
    team, _ = build_team(tmp_path_factory.mktemp("team"))
    return TokenTexts(team.members[request.param].tokenizer)


def ids_of(texts, text):
    return texts.tokenizer(text, add_special_tokens=False)["input_ids"]


def streamed(texts, ids, *, sizes, **how):
    """All parts, each after so many tokens; and the stream."""
    stream, parts, place = TextStream(texts, **how), [], 0
    while place < len(ids) and not stream.has_stopped:
        new = ids[place : place + next(sizes)]
        stream.add(new, [-float(i) for i in range(place, place + len(new))])
        place += len(new)
        if not stream.has_stopped and (part := stream.part()) is not None:
            assert part.text
            parts.append(part)
    return [*parts, stream.last()], stream


def joined(parts):
    return "".join(part.text for part in parts)


def at_once(texts, ids, opening="", stops=()):
    """As `write_texts` has it."""
    kept = before_stop(texts.tokenizer, ids, stops) if stops else None
    return opening + texts.shown(ids if kept is None else kept).strip()


def sizes_of(seed):
    chosen = random.Random(seed)
    while True:
        yield chosen.randint(1, 4)


@pytest.mark.parametrize("text", [*TEXTS, *QUESTIONS, ""])
@pytest.mark.parametrize("stops", [(), ("\nUSER :", "b"), ("a a", "日本"), ("🙂",)])
def test_parts_are_the_text(texts, text, stops):
    ids = [*ids_of(texts, text), texts.tokenizer.eos_token_id]
    expected = at_once(texts, ids, "<think>", stops)
    whole, _ = streamed(texts, ids, sizes=iter([len(ids)]), stops=stops)
    assert joined(whole) == expected.removeprefix("<think>")
    for seed in range(6):
        how = {"opening": "<think>", "stops": stops}
        parts, stream = streamed(texts, ids, sizes=sizes_of(seed), **how)
        assert joined(parts) == expected
        found = [token for part in parts for token in part.tokens]
        pieces = "".join(piece for piece, _ in found)
        if "\ufffd" not in pieces:  # no tokens of half characters
            assert pieces.strip() == expected.removeprefix("<think>")
        numbers = [-logprob for _, logprob in found]
        assert numbers == sorted(numbers)
        whole, at_end = streamed(texts, ids, sizes=iter([len(ids)]), **how)
        assert stream.ids == at_end.ids  # does not depend on the parts
        assert found == [token for part in whole for token in part.tokens]


def test_random_tokens(texts):
    for seed in range(200):
        chosen = random.Random(seed)
        ids = [chosen.randrange(len(texts.tokenizer)) for _ in range(chosen.randint(1, 12))]
        parts, _ = streamed(texts, ids, sizes=sizes_of(seed))
        assert joined(parts) == at_once(texts, ids), ids


def test_where_random_tokens_stop_does_not_depend_on_the_parts(texts):
    for seed in range(200):
        chosen = random.Random(seed)
        ids = [chosen.randrange(len(texts.tokenizer)) for _ in range(12)]
        stops = chosen.choice([("a",), (" t", "ends"), ("\n", "}")])
        first, one = streamed(texts, ids, sizes=sizes_of(seed), stops=stops)
        second, other = streamed(texts, ids, sizes=iter([12]), stops=stops)
        assert joined(first) == joined(second) and one.ids == other.ids, ids


def test_what_may_begin_a_stop_string_is_held_back(texts):
    stream = TextStream(texts, stops=("to b",))
    stream.add(ids_of(texts, "from a to"), [0.0] * len(ids_of(texts, "from a to")))
    assert stream.part().text == "from a"
    after = ids_of(texts, " end to")  # not the stop string
    stream.add(after, [0.0] * len(after))
    assert stream.part().text == " to end"
    assert stream.last().text == " to" and not stream.has_stopped
