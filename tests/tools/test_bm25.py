import gzip
import json
import os
import random

import pytest

from rmas_jax.tools import SearchError, SearchResult, open_bm25, read_corpus

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
    found = open_bm25(documents).search(query)
    assert found[: len(places)] == [documents[place] for place in places]
    assert bool(found) == bool(places)


def test_a_corpus_keeps_what_it_knows_of_a_document(corpus):
    documents = read_corpus(corpus)
    assert documents[0].url == "https://a.example" and documents[0].title == "Paris"
    assert documents[2] == SearchResult("", "", CORPUS[2]["text"])


def test_a_corpus_may_have_what_data_files_may_have(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "title": null, "url": null}\n\n{"text": "b"}\n\n')
    assert read_corpus(path) == [SearchResult("", "", "a"), SearchResult("", "", "b")]
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_corpus(packed) == read_corpus(path)
    listed = tmp_path / "corpus.json"
    listed.write_text(json.dumps([{"text": "a\u2028b"}], ensure_ascii=False), encoding="utf-8")
    assert read_corpus(listed) == [SearchResult("", "", "a\u2028b")]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere", "sparse"])
def test_a_corpus_is_a_regular_file(tmp_path, kind):
    path = tmp_path / "corpus.jsonl"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "nowhere":
            path.symlink_to("nothing")
        case "sparse":
            path.touch()
            os.truncate(path, 10**12)
    with pytest.raises(SearchError, match=r"corpus\.jsonl: (must be|no such file)"):
        read_corpus(path)


@pytest.mark.parametrize("text", ["", "a", "the of and", "?!"])
def test_a_corpus_without_a_word_is_refused(text):
    with pytest.raises(SearchError, match="at least one document must have a word"):
        open_bm25([SearchResult("", "", text)])
    assert open_bm25([SearchResult("", "", text), SearchResult("", "", "word")]).search("word")


def test_the_same_words_find_the_same_in_every_index_in_the_order_of_the_corpus():
    words = [f"word{n}" for n in range(30)]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=10)) for _ in range(100)]
    documents = [SearchResult(str(n), "", text) for n, text in enumerate(texts)]
    first, second = open_bm25(documents), open_bm25(documents)
    for word in words:
        assert first.search(word) == second.search(word) != []
    twins = open_bm25([SearchResult(str(n), "", "the same words") for n in range(9)])
    assert [result.title for result in twins.search("same")] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"text": "a"}\n{"title": "b"}\n', "line 2: not an object"),
        ('{"text": "a"}\nnot json\n', "line 2: Expecting value"),
        ("", "must hold at least one document"),
        ("\n\n", "must hold at least one document"),
        ('{"text": "a"}\n{"text": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 2: too deep nesting"),
        ('{"text": "a"}\n{"text": "\\ud800"}', "line 2: holds half of a surrogate"),
        ('[{"text": "a"}]', "line 1.*name a file with a list of rows .json"),
    ],
)
def test_a_bad_corpus_is_refused_by_file_and_line(tmp_path, text, problem):
    path = tmp_path / "corpus.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"corpus.jsonl.*{problem}"):
        read_corpus(path)


def test_a_corpus_in_another_encoding_is_refused_by_name(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-16")
    with pytest.raises(SearchError, match=r"corpus\.jsonl: .*got UTF-16"):
        read_corpus(path)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"bm25s: pip install 'rmas_jax\[search\]'"):
        open_bm25([SearchResult("", "", "a")])


def test_an_index_is_built_without_a_word_in_the_log(corpus, caplog):
    open_bm25(read_corpus(corpus))
    assert not caplog.records
