"""Words of texts in any script, for search.

In scripts with spaces, words are those of bm25s: two letters or more, in lower case, no English
stop words. In Chinese, Japanese, Korean, Thai and other scripts, which join words or endings, every
pair of adjacent characters is a word, as in Lucene's CJKAnalyzer.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator

# Letters, and marks on them, of scripts that join words.
_JOINED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u1000-\u1049\u1050-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u0f40-\u0fbc"  # Tibetan
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"  # Korean
    "\ua000-\ua48c"  # Yi
)
_RUN = re.compile(f"[{_JOINED}]+")


def words_of(texts: Iterable[str], *, is_query: bool) -> list[list[str]]:
    """The words of texts.

    Args:
      texts: of documents, or queries.
      is_query: if False, single characters of scripts without spaces are words too, so that a
        query of one character finds them.
    """
    from bm25s import tokenize

    texts = [unicodedata.normalize("NFKC", text).lower() for text in texts]
    spaced = tokenize(
        [_RUN.sub(" ", text) for text in texts],
        token_pattern=_word_pattern(),
        return_ids=False,
        show_progress=False,
    )
    return [
        [*words, *_pairs(text, with_singles=not is_query)]
        for words, text in zip(spaced, texts, strict=True)
    ]


@functools.cache
def _word_pattern() -> str:
    """The pattern of bm25s, with marks as parts of words: Hindi writes vowels as marks."""
    codes = range(sys.maxunicode + 1)
    marks = "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] == "M")
    return rf"(?u)[\w{marks}]{{2,}}"


def _pairs(text: str, *, with_singles: bool) -> Iterator[str]:
    for run in _RUN.findall(text):
        if with_singles or len(run) == 1:
            yield from run
        yield from map("".join, itertools.pairwise(run))
