"""Code without what chats and notebooks put around it."""

import pytest

from rmas_jax.tools import PythonLimits, Toolbox, next_call, run_python
from rmas_jax.tools.snippets import code_of

F = "```"


@pytest.mark.parametrize(
    "text",
    [
        f"{F}python\nprint(6 * 7)\n{F}",
        f"\n{F}python\nprint(6 * 7)\n{F}\n",
        f"{F}py\nprint(6 * 7)\n{F}",
        f"{F}Python3\nprint(6 * 7)\n{F}",
        f"{F} python\nprint(6 * 7)\n{F}",
        f"{F}\nprint(6 * 7)\n{F}",
        "~~~python\nprint(6 * 7)\n~~~",
        f"{F}`python\nprint(6 * 7)\n{F}`",
        f"  {F}python\n  print(6 * 7)\n  {F}",
        f"{F}python\n    print(6 * 7)\n{F}",
        f"{F}python\r\nprint(6 * 7)\r\n{F}\r\n",
        f"{F}python\nprint(6 * 7)",  # the call ended first
        f"print(6 * 7)\n{F}",
        f"I compute it:\n{F}python\nprint(6 * 7)\n{F}\nThat is all.",
        f"{F}print(6 * 7){F}",
        f"{F}python print(6 * 7){F}",
        "`print(6 * 7)`",
        ">>> print(6 * 7)",
        ">>> print(6 * 7)\n42",
        "In [1]: print(6 * 7)",
        f"{F}python\n>>> print(6 * 7)\n42\n{F}",
        "    print(6 * 7)",
        "\n\n\tprint(6 * 7)\n",
    ],
)
def test_one_statement_is_left(text):
    assert code_of(text) == "print(6 * 7)"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{F}python\na = 1\n{F}\nthen\n{F}python\nprint(a)\n{F}", "a = 1\nprint(a)"),
        (
            ">>> for i in [1]:\n...     print(i)\n...\n1\n>>> x = 2",
            "for i in [1]:\n    print(i)\n\nx = 2",
        ),
        ("x = 1\n    y = 2\n    print(x + y)", "x = 1\ny = 2\nprint(x + y)"),
        ("# sum\n  print(1)", "# sum\nprint(1)"),
        ("    a = 1\n    b = 2", "a = 1\nb = 2"),
    ],
)
def test_several_statements_are_left(text, code):
    assert code_of(text) == code


@pytest.mark.parametrize(
    "code",
    [
        "if x:\n    print(1)",
        "for i in range(2):\n    print(i)",
        "x = [\n    1,\n]",
        "x = f(1,\n      2)",
        "x = 1 + \\\n    2",
        f'text = """\n{F}python\nprint(1)\n{F}\n"""\nprint(text)',
        f"text = '''\n{F}\n'''",
        f"print('{F}')",
        "print('>>> 1')",
        "s = '''a\n    b'''",
        "x = '`'",
        "class A:\n    def f(self):\n        return 1",
        "",
    ],
)
def test_code_without_such_marks_stays_as_it_is(code):
    assert code_of(code) == code


def test_calls_in_fences_cost_no_call():
    toolbox = Toolbox(python=PythonLimits())
    for text in (
        f"<python>\n{F}python\nprint(6 * 7)\n{F}\n</python>",
        "<python><python>print(6 * 7)</python>",
        "I use <python> so: <python>print(6 * 7)</python>",
    ):
        assert toolbox.run(next_call(text)) == "42"
    assert "SyntaxError" in run_python("print(6 *")


@pytest.mark.slow
def test_hostile_text_takes_no_long_time():
    for part in (F, f"{F}\n", ">>> ", "`", "(", '"""\n', " \n", "    x\n", "<python>"):
        code_of(part * 20_000)
        next_call("<python>" + part * 20_000 + "</python>")
