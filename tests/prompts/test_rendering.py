"""Templates that would hang, fill the memory or reach Python end in a few words."""

from __future__ import annotations

import resource
import threading
import time

import pytest

from rmas_jax.prompts.rendering import TOO_MUCH, render

MEMORY, LENGTH = "it exceeds the memory limit", "it writes more than"
DEEP = "its recursion or nesting is too deep"
HOSTILE = {
    "'x' * 10**10": ("{{ 'x' * 10**10 }}", MEMORY),
    "of a variable": ("{{ messages[0].content * 10**10 }}", MEMORY),
    "of a list": ("{{ ([0] * 10**10) | length }}", MEMORY),
    "filter": ("{{ messages[0].content | center(10**10) }}", MEMORY),
    "method": ("{{ messages[0].content.ljust(10**10) }}", MEMORY),
    "format": ("{{ '%10000000000d' % 1 }}", MEMORY),
    "doubling": (
        "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
        "{% endfor %}{{ n.s | length }}",
        MEMORY,
    ),
    "long": ("{% for i in range(1000) %}{{ 'x' * 10000 }}{% endfor %}", LENGTH),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        TOO_MUCH,
    ),
    "power": ("{{ (7 ** (10**8)) % 10 }}", TOO_MUCH),
    "macro": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", DEEP),
    "nested": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", DEEP),
    "attribute": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "'__class__' of 'str'"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "is unsafe"),
    "strftime": ("{{ strftime_now.__globals__.keys() }}", "is unsafe"),
    "namespace": ("{{ namespace(__class__=1) }}", "must not begin with _, got '__class__'"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "long words": ("{{ raise_exception('no' * 10**6) }}", "nono"),
    "syntax": ("{% for %}", "Expected an expression"),
}


def outcome(template, content="Hi."):
    asked = [{"messages": [{"role": "user", "content": content}], "add_generation_prompt": True}]
    [found] = render(template, asked, variables={}, date="2024-02-29")
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_template_may_not_do_is_said(name):
    template, words = HOSTILE[name]
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    text, error = outcome(template)
    assert text is None and words in error and len(error) <= 300
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 6
    assert time.perf_counter() - started < 90


def test_a_failure_is_that_of_its_conversation():
    template = "{{ messages[0].content * messages[0].times }}"
    asked = [{"messages": [{"content": "ab", "times": n}]} for n in (2, 10**10, 3)]
    found = render(template, asked, variables={}, date="2024-02-29")
    assert [text for text, _ in found] == ["abab", None, "ababab"] and found[1].error == MEMORY


def test_it_works_in_threads_and_with_any_text():
    texts = ["a\x00b", "\udcff", "日本 \U0001f600", "{{ 1 }} {% if %}", "'\"\\", "<&>"]
    found = {}

    def work(text):
        found[text] = outcome("{{ messages[0].content }}", text).text

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: text for text in texts}
