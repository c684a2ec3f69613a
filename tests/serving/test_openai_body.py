"""Bodies of requests are strict JSON objects, or refused in OpenAI's form."""

from __future__ import annotations

import pytest

from rmas_jax.serving.openai.body import strict_object
from rmas_jax.serving.openai.errors import ApiError


def test_an_object_is_read_as_it_is():
    raw = '{"a": [1, 2.5, null, true], "b": {"c": "ü\\u2028"}, "d": {"c": 1}}'.encode()
    assert strict_object(raw) == {"a": [1, 2.5, None, True], "b": {"c": "ü\u2028"}, "d": {"c": 1}}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": 1,}', "strict JSON"),
        (b'{"a": 1} x', "Extra data"),
        (b"[]", "must be a JSON object, got []"),
        (b'"text"', "must be a JSON object, got 'text'"),
        (b"null", "must be a JSON object, got None"),
        (b'{"a": NaN}', "numbers must be finite, got NaN"),
        (b'{"a": [-Infinity]}', "numbers must be finite, got -Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "keys must be distinct, got 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "keys must be distinct, got 'b' twice"),
        (b'{"a": "\xff"}', "strict JSON in UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "strict JSON in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "strict JSON in UTF-8"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too deep nesting"),
        (b'{"a": ' + b'{"a": ' * 100_000, "too deep nesting"),
        (b'{"a": ' + b"9" * 5000 + b"}", "strict JSON"),
        (b'{"a": "\x01"}', "Invalid control character"),
        (b"{'a': 1}", "strict JSON"),
    ],
)
def test_what_is_no_strict_json_object_is_refused(raw, words):
    with pytest.raises(ApiError) as raised:
        strict_object(raw)
    error = raised.value
    assert error.status == 400 and words in str(error)
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    assert len(str(error)) < 500


def test_many_keys_take_no_long_time():
    keys = ", ".join(f'"{i}": 0' for i in range(100_000))
    with pytest.raises(ApiError, match="got '99999' twice"):
        strict_object(f'{{{keys}, "99999": 1}}'.encode())
