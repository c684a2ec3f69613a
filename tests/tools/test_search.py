import pytest

from rmas_jax.tools import SearchResult, render_error, render_results
from rmas_jax.tools.search import parse_result


def test_results_are_numbered_on_one_line_each_and_cut():
    results = [
        SearchResult("A\n title", "https://a.example", "text   over\n\nlines"),
        SearchResult("B", "", "x" * 321),
    ]
    assert render_results("who\n is it", results) == (
        "Query: who is it\n"
        "Results:\n"
        "[1] A title\n"
        "URL: https://a.example\n"
        "text over lines\n"
        "[2] B\n" + "x" * 320
    )


def test_there_are_four_results_at_most():
    text = render_results("q", [SearchResult(f"title {n}", "", "t") for n in range(9)])
    assert "[4] title 3" in text and "[5]" not in text and "title 4" not in text


def test_no_results_and_errors_are_text_too():
    assert render_results("q", []) == "[no search results]"
    assert render_error(ValueError("odd")) == "[search error] ValueError: odd"


def test_a_result_needs_its_text_and_nothing_else():
    assert parse_result({"text": "a", "score": 1}) == SearchResult("", "", "a")
    assert parse_result({"text": "a", "title": None, "url": None}) == SearchResult("", "", "a")
    for fields in ({}, {"text": 1}, {"text": None}, {"text": "a", "title": 1}, ["a"], "a", None):
        with pytest.raises(ValueError, match="text, title and url"):
            parse_result(fields)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_result({"text": "a", "title": "\ud800"})
