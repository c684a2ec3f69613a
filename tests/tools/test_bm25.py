import json
import random

import pytest

from rmas_jax.tools import Bm25Search, SearchResult, read_corpus

CORPUS = [
    {"title": "Paris", "text": "Paris is the capital of France.", "url": "https://a.example"},
    {"title": "Rome", "text": "Rome is the capital of Italy, and an old city."},
    {"text": "The Seine flows through Paris, past Notre-Dame."},
    {"title": "Tiber", "text": "The river Tiber flows through Rome."},
    {"title": "Île", "text": "Une île est une terre entourée d'eau."},
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in CORPUS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("capital of France", [0, 1]),
        ("TIBER", [3]),
        ("river through Rome?", [3, 1]),
        ("île", [4]),
        ("the of and", []),  # nothing but stop words
        ("submarine", []),
        ("", []),
    ],
)
def test_the_best_documents_that_share_a_word_come_first(corpus, query, places):
    documents = read_corpus(corpus)
    found = Bm25Search(documents).search(query)
    assert found[: len(places)] == [documents[place] for place in places]
    assert bool(found) == bool(places)


def test_a_corpus_keeps_what_it_knows_of_a_document(corpus):
    documents = read_corpus(corpus)
    assert documents[0].url == "https://a.example" and documents[0].title == "Paris"
    assert documents[2] == SearchResult("", "", CORPUS[2]["text"])


def test_the_same_words_find_the_same_in_every_index_in_the_order_of_the_corpus():
    words = [f"word{n}" for n in range(30)]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=10)) for _ in range(100)]
    documents = [SearchResult(str(n), "", text) for n, text in enumerate(texts)]
    first, second = Bm25Search(documents), Bm25Search(documents)
    for word in words:
        assert first.search(word) == second.search(word) != []
    twins = Bm25Search([SearchResult(str(n), "", "the same words") for n in range(9)])
    assert [result.title for result in twins.search("same")] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"text": "a"}\n{"title": "b"}\n', "line 2: not an object"),
        ('{"text": "a"}\nnot json\n', "line 2: Expecting value"),
        ("", "no documents"),
    ],
)
def test_a_bad_corpus_is_refused_by_file_and_line(tmp_path, text, problem):
    path = tmp_path / "corpus.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"corpus.jsonl.*{problem}"):
        read_corpus(path)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"bm25s: pip install 'rmas_jax\[search\]'"):
        Bm25Search([SearchResult("", "", "a")])
