"""Programs that try to pass without an answer, and honest ones that do the same odd things."""

import json
import struct

import pytest

from rmas_jax.data import Example
from rmas_jax.evaluation.graders.code import grade_code
from rmas_jax.evaluation.graders.code_runs import CodeLimits
from rmas_jax.evaluation.graders.verdict import Outcome

# The expected results all match 7[35]10000\d\d, and no input does.
PAIRS = [(73100001, 7), (73100002, 9), (75100000, 14)]
LIMITS = CodeLimits(test_s=2, total_s=60, memory_bytes=512 << 20)


def cases(kind, given, wanted):
    tests = [{"input": given(*pair), "output": wanted(*pair), "testtype": kind} for pair in PAIRS]
    return json.dumps(tests)


READ = "import os, sys\na, b = map(int, sys.stdin.read().split())\n"
STDIN = {"public_test_cases": cases("stdin", lambda n, k: f"{n - k} {k}\n", lambda n, k: f"{n}\n")}
FUNCTIONAL = {
    "public_test_cases": cases("functional", lambda n, k: f"{n - k}\n{k}", lambda n, k: f"[{n}]"),
    "metadata": '{"func_name": "add"}',
}
SCRIPT = {
    "test": f"""
import numpy as np
def assertion(out, exp, atol):
    if isinstance(exp, float):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {{out}}, exp: {{exp}}"
inputs = {[[n - k, k] for n, k in PAIRS]}
results = {[[n] for n, _ in PAIRS]}
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(add(*inp), exp, 0)
"""
}
FLOATS = {"test": "import numpy as np\nassert np.allclose(half(3), 1.5)"}
MUTATED = {"test": "def ref(x): return sorted(x)\nfor x in [[2, 1]]:\n    assert f(x) == ref(x)"}

# Looks for an expected result in texts, numbers and bytes; `found` is then no longer None.
SPY = r"""
import gc, glob, os, re, select, sys
found = None
def look(thing):
    global found
    texts = [thing.decode(errors="replace") if isinstance(thing, bytes) else repr(thing)[:10**6]]
    for text in texts:
        if match := re.search(r"7[35]10000\d\d", text):
            found = found or int(match[0])
def frames():
    frame = sys._getframe()
    while frame:
        look(frame.f_code.co_consts), look([*frame.f_locals.values()]), look([*frame.f_globals])
        frame = frame.f_back
def objects():
    for thing in gc.get_objects():
        if type(thing) in (dict, list, tuple):
            for item in thing.values() if type(thing) is dict else thing:
                if type(item) in (str, bytes, int): look(item)
def files():
    for path in [*glob.glob("/*"), *glob.glob("/sandbox/**"), *glob.glob("/proc/**"),
                 "/inside.py", "/proc/self/mem", "/proc/self/environ", "/proc/1/cmdline"]:
        try: look(open(path, "rb").read(10**6))
        except OSError: pass
def descriptors():
    for number in range(64):
        try:
            if select.select([number], [], [], 0)[0]: look(os.read(number, 10**6))
            look(os.pread(number, 10**6, 0))
        except OSError: pass
def environment():
    look(dict(os.environ)), look(sys.argv), look({m: vars(x) for m, x in sys.modules.items()
                                                   if "program" in m or "main" in m})
"""


def spies(style):
    """Programs that look in one place, then answer with what they found, or else wrong or right."""
    for place in ("frames", "objects", "files", "descriptors", "environment"):
        for answer in ("0", "a + b"):
            if style is STDIN:
                code = READ + SPY + f"{place}()\nprint(found or {answer})"
            else:
                code = SPY + f"def add(a, b):\n    {place}()\n    return [found or {answer}]"
            yield style, code, answer == "a + b"


def frame(message):
    """A message as the harness expects it."""
    data = json.dumps(message).encode()
    return struct.pack("<Q", len(data)) + data


SHOUT = f"""
import os
def shout():
    for number in range(3, 64):
        try:
            os.write(number, {frame({"ended": "passed"})!r})
            os.write(number, {frame({"code": 0, "output": "73100001", "report": "{}"})!r})
            os.write(number, {frame({"value": [73100001]})!r})
        except OSError: pass
"""
ALWAYS = "class Always:\n    __eq__ = __ne__ = __le__ = __ge__ = lambda *a: True\n"
ALWAYS += "    __hash__ = lambda s: 1\n    __str__ = __repr__ = lambda s: ''\n"
CHEATS = [
    # ends early, or late
    (STDIN, "import os\nos._exit(0)", False),
    (STDIN, READ + "print(a + b, flush=True)\nos._exit(0)", True),
    (STDIN, "import sys\nsys.exit(0)", False),
    (STDIN, READ + "print(a + b)\nsys.exit(0)", True),
    (STDIN, READ + "print(a + b)\nsys.exit(1)", False),
    (STDIN, READ + "import atexit\natexit.register(lambda: print(a + b))", True),
    (FUNCTIONAL, "import os\ndef add(a, b): os._exit(0)", False),
    (FUNCTIONAL, "import atexit, os\natexit.register(os._exit, 0)\n"
                 "def add(a, b): return [a + b]", True),
    (FUNCTIONAL, "def add(a, b): raise SystemExit(0)", False),
    (FUNCTIONAL, "def add(a, b):\n    print('wrong')\n    return [a + b]", True),
    (SCRIPT, "import os\ndef add(a, b): os._exit(0)", False),
    (SCRIPT, "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return [a+b]", True),
    (SCRIPT, "import sys\ndef add(a, b): sys.exit(0)", False),
    (SCRIPT, "import sys\nsys.exit = print\ndef add(a, b): return sys.exit() or [a + b]", True),
    (SCRIPT, "raise SystemExit(0)\ndef add(a, b): return [a + b]", False),
    (SCRIPT, "def add(a, b): return [a + b]\nif __name__ == '__main__': raise SystemExit(1)", True),
    # patches what it can reach
    (STDIN, ALWAYS + "print(Always())", False),
    (STDIN, READ + ALWAYS + "import builtins\nbuiltins.str = Always\nprint(a + b)", True),
    (FUNCTIONAL, ALWAYS + "def add(a, b): return Always()", False),
    (FUNCTIONAL, "class L(list):\n    __eq__ = print\ndef add(a, b): return L([a + b])", True),
    (SCRIPT, ALWAYS + "def add(a, b): return Always()", False),
    (SCRIPT, "class List(list):\n    __eq__ = print\ndef add(a, b): return List([a + b])", True),
    (SCRIPT, ALWAYS + "def add(a, b): return [Always()]", False),
    (SCRIPT, "import numpy as np\ndef add(a, b): return [np.int64(a + b)]", True),
    (SCRIPT, "def zip(*a): return []\nenumerate = zip\ndef add(a, b): return 0", False),
    (SCRIPT, "def zip(*a): return []\nenumerate = zip\ndef add(a, b): return [a + b]", True),
    (SCRIPT, "inputs = results = []\ndef assertion(*a): pass\ndef add(a, b): return 0", False),
    (SCRIPT, "inputs = results = []\ndef assertion(*a): 1/0\ndef add(a, b): return [a + b]", True),
    (SCRIPT, "import numpy\nnumpy.allclose = lambda *a, **k: 1\ndef add(a, b): return 1.0", False),
    (SCRIPT, "import numpy\nnumpy.allclose = None\ndef add(a, b): return [float(a + b)]", True),
    (FUNCTIONAL, "import json\njson.dumps = lambda *a: '[]'\ndef add(a, b): return []", False),
    (FUNCTIONAL, "import json, operator\ndef add(a, b): return (operator.add(a, b),)", True),
    (FLOATS, "def half(x): return []", False),
    (FLOATS, "def half(x): return x / 2 + 1e-10", True),
    (FLOATS, "def half(x): return [x / 2, x / 2]", False),
    (FLOATS, "import numpy\ndef half(x): return numpy.float32(x / 2)", True),
    (MUTATED, "def f(x):\n    x.clear()\n    return []", False),
    (MUTATED, "def f(x):\n    y = sorted(x)\n    x.clear()\n    return y", True),
    # forges messages
    (STDIN, SHOUT + "shout()\nprint('passed')", False),
    (STDIN, READ + SHOUT + "shout()\nprint(a + b)", True),
    (FUNCTIONAL, SHOUT + "def add(a, b): shout()", False),
    (FUNCTIONAL, SHOUT + "def add(a, b): return shout() or [a + b]", True),
    (SCRIPT, SHOUT + "def add(a, b): shout()", False),
    (SCRIPT, "def add(a, b):\n    print('failed')\n    return [a + b]", True),
    # processes and threads
    (STDIN, READ + "if os.fork() == 0: print(a)", False),
    (STDIN, READ + "if os.fork() == 0: print(a + b)\nelse: os.wait()", True),
    (STDIN, "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    print(73100001)", False),
    (STDIN, READ + "print(a + b, flush=True)\nif os.fork() == 0:\n    os.setsid()\n"
            "    while True: 1", True),
    (STDIN, READ + "import threading\nthreading.Thread(target=print, args=[a]).start()", False),
    (STDIN, READ + "import threading\nthreading.Thread(target=print, args=[a + b]).start()", True),
    (STDIN, READ + "os.kill(os.getppid(), 9)", False),
    (STDIN, READ + "import signal\nsignal.signal(15, signal.SIG_IGN)\nos.kill(os.getpid(), 15)\n"
            "print(a + b)", True),
    (SCRIPT, "import os\ndef add(a, b): os.fork()", False),
    (SCRIPT, "from concurrent.futures import ThreadPoolExecutor as T\n"
             "def add(a, b): return [T(2).submit(sum, (a, b)).result()]", True),
    # what other tests have left
    (STDIN, READ + "open('n', 'a').write('x')\nprint(73100001 if open('n').read() else 0)", False),
    (STDIN, READ + "left = os.listdir()\nopen('n', 'w').close()\nprint(left or a + b)", True),
    (FUNCTIONAL, "n = [73100001, 73100002, 75100000]\ndef add(a, b): return [n.pop(0)]", False),
    (FUNCTIONAL, "n = []\ndef add(a, b):\n    n.append(a)\n    return [a + b] * len(n)", True),
]  # fmt: skip
CHEATS += [*spies(STDIN), *spies(FUNCTIONAL), *spies(SCRIPT)]


def test_there_are_enough_pairs_in_which_right_and_wrong_alternate():
    assert len(CHEATS) >= 80
    assert [is_right for *_, is_right in CHEATS] == [False, True] * (len(CHEATS) // 2)


@pytest.mark.parametrize(("fields", "program", "is_right"), CHEATS)
def test_only_an_answer_passes(fields, program, is_right):
    example = Example("0", "?", "no gold answer", fields=fields)
    verdict = grade_code(f"```python\n{program}\n```", example, LIMITS)
    assert verdict.correct is is_right, verdict
    assert verdict.prediction == program
    assert (verdict.outcome, verdict.reason) != (Outcome.CRASHED, "compile error")
    assert not any(str(wanted) in verdict.reason for wanted, _ in PAIRS)
