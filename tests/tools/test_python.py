import importlib.util

import pytest

from rmas_jax.tools import PythonLimits, run_python


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(6 * 7)", "42"),
        ("print('é', '数')", "é 数"),
        ("x = 1", "[no output]"),
        ("    a = 20\n    b = 3\n    print(a + b)\n", "23"),  # indented as a whole
        (" for i in range(2):\n     print(i)", "0\n1"),
        ("print(math.comb(5, 2), fractions.Fraction(1, 3), statistics.mean([1, 2]))", "10 1/3 1.5"),
        ("print(list(itertools.accumulate([1, 2])), functools.reduce(max, [3, 4]))", "[1, 3] 4"),
        ("import sys\nprint('a')\nprint('b', file=sys.stderr)", "a\n[stderr]\nb"),
        ("import sys\nsys.exit(3)", "[exit_code] 3"),
        ("import os\nos.abort()", "[exit_code] 134"),
        ("from __future__ import annotations\ndef f(x: nothing): return x\nprint(f(1))", "1"),
        ("if __name__ == '__main__':\n    print(open('/sandbox/a', 'w').write('abc'))", "3"),
    ],
)
def test_what_a_program_prints_and_how_it_ends(code, text):
    assert run_python(code) == text


def test_an_error_shows_the_code_and_nothing_of_ours():
    assert run_python("print(1)\nraise ValueError('no')") == (
        "1\n"
        "[stderr]\n"
        "Traceback (most recent call last):\n"
        '  File "<python>", line 2, in <module>\n'
        "    raise ValueError('no')\n"
        "ValueError: no\n"
        "[exit_code] 1"
    )


def test_code_that_is_no_python_says_where():
    text = run_python("print(1\nprint(2)")
    assert "SyntaxError" in text and "line 1" in text and "Traceback" not in text


def test_sympy_is_known_by_both_names_where_it_is_installed():
    assert importlib.util.find_spec("sympy")  # torch, which the tests install, needs it
    code = "x = sp.Symbol('x')\nprint(sympy.factor(x**2 - 1))"
    assert run_python(code) == "(x - 1)*(x + 1)"


def test_processes_and_threads_work_within_the_limits():
    code = "from multiprocessing import Pool\nwith Pool(3) as pool: print(pool.map(abs, [-1, 2]))"
    assert run_python(code) == "[1, 2]"


def test_each_program_starts_in_an_empty_folder():
    code = "import os\nprint(os.listdir())\nopen('left', 'w').close()"
    assert [run_python(code), run_python(code)] == ["[]", "[]"]


@pytest.mark.parametrize(
    ("code", "limits", "note"),
    [
        ("print(1, flush=True)\nwhile True: pass", PythonLimits(wall_s=1), "ended after 1 s"),
        ("import time\nprint(1, flush=True)\ntime.sleep(60)", PythonLimits(wall_s=1), "after 1 s"),
        ("print(1, flush=True)\nwhile True: pass", PythonLimits(cpu_s=1), "1 s of computing"),
    ],
)
def test_a_program_without_end_is_ended_and_keeps_what_it_printed(code, limits, note):
    text = run_python(code, limits)
    assert text.startswith("1\n[timeout]") and note in text


def test_without_a_sandbox_time_memory_and_file_sizes_are_limited_still():
    def run(code, **limits):
        return run_python(code, PythonLimits(**limits), unsafe_without_sandbox=True)

    assert run("print(6 * 7)") == "42"
    assert run("import os\nprint(os.listdir())") == "[]"
    assert run("while True: pass", wall_s=1) == "[timeout] ended after 1 s"
    assert "MemoryError" in run("bytearray(10 << 30)")
    assert "File too large" in run("open('a', 'wb').write(bytes(2 << 20))", file_bytes=1 << 20)
