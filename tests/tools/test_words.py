"""Words: those of bm25s in scripts with spaces, pairs of characters in others."""

import bm25s
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmas_jax.tools import SearchResult, open_bm25, render_results
from rmas_jax.tools.words import words_of

DOCUMENTS = {
    "Chinese": "北京是中华人民共和国的首都。",
    "Japanese": "東京は日本の首都である。カタカナ、水曜日",
    "Korean": "서울은 대한민국의 수도이다",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "Lao": "ວຽງຈັນເປັນນະຄອນຫຼວງ",
    "Khmer": "ភ្នំពេញជារាជធានី",
    "Burmese": "ရန်ကုန်မြို့",
    "Hindi": "नई दिल्ली भारत की राजधानी है",
    "Tamil": "சென்னை தமிழ்நாட்டின் தலைநகரம்",
    "Arabic": "القاهرة عاصمة مصر",
    "Russian": "Москва — столица России",
    "French": "Une île est une terre entourée d'eau",
    "mixed": "GPT模型 и другие",
    "English": "Paris is the capital of France",
}
SEARCH = open_bm25([SearchResult(name, "", text) for name, text in DOCUMENTS.items()])


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("首都", {"Chinese", "Japanese"}),
        ("中华人民共和国", {"Chinese"}),
        ("的", {"Chinese"}),  # of one character
        ("水", {"Japanese"}),
        ("日本の首都はどこですか", {"Japanese", "Chinese"}),
        ("カタカナ", {"Japanese"}),
        ("ｶﾀｶﾅ", {"Japanese"}),  # half as wide
        ("서울", {"Korean"}),  # without the ending that it has in the text
        ("대한민국 수도", {"Korean"}),
        ("ประเทศไทย", {"Thai"}),
        ("ນະຄອນ", {"Lao"}),
        ("រាជធានី", {"Khmer"}),
        ("ရန်ကုန်", {"Burmese"}),
        ("दिल्ली", {"Hindi"}),
        ("தமிழ்நாட்டின்", {"Tamil"}),
        ("عاصمة", {"Arabic"}),
        ("столица", {"Russian"}),
        ("i\u0302le", {"French"}),  # composed otherwise
        ("\uff27\uff30\uff34", {"mixed"}),  # twice as wide
        ("gpt", {"mixed"}),
        ("模型", {"mixed"}),
        ("capital", {"English"}),
        ("模式", set()),  # neither of its characters makes a word with the other in any text
        ("猫", set()),
        ("\uff1f\uff01。", set()),
    ],
)
def test_every_script_is_found(query, names):
    found = SEARCH.search(query)
    assert {result.title for result in found} == names
    assert (render_results(query, found) == "[no search results]") == (not names)


def test_the_document_that_shares_more_comes_first():
    texts = ["東京の天気", "京都の天気予報と東京の天気予報", "大阪の料理"]
    search = open_bm25([SearchResult("", "", text) for text in texts])
    assert [result.text for result in search.search("京都の天気予報")] == [texts[1], texts[0]]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("abcXYZ éßЖжñ 019_-',.\n\tthe of and"), max_size=60))
def test_words_that_stand_apart_are_those_of_bm25s(text):
    wanted = bm25s.tokenize([text], return_ids=False, show_progress=False)
    assert words_of([text], is_query=True) == words_of([text], is_query=False) == wanted


def test_a_document_has_single_characters_too_and_a_query_only_where_they_stand_alone():
    assert words_of(["水曜日 x水"], is_query=False) == [["水", "曜", "日", "水曜", "曜日", "水"]]
    assert words_of(["水曜日 x水"], is_query=True) == [["水曜", "曜日", "水"]]
