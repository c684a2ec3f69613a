"""Programs that keep each of their limits, and hold much in sum; really run, with small limits."""

import ctypes
import dataclasses
import os

import pytest

from rmas_jax.tools import PythonLimits, run_python
from rmas_jax.tools.call_filter import call_numbers
from rmas_jax.tools.sandbox import run_program

MIB = 1 << 20
SMALL = PythonLimits(wall_s=30, memory_bytes=160 * MIB, processes=6, total_bytes=150 * MIB)
# Two processes do this, and would hold 200 MiB if nothing added up.
HOLD = "held = bytearray(b'x') * (90 << 20)\n"
IMPORTS = "import ctypes, os, signal, threading\n"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "for _ in range(2):\n    if os.fork() == 0: break\n" + HOLD + "signal.pause()",
            id="processes",
        ),
        pytest.param(
            "for _ in range(2):\n"
            "    if os.fork() == 0:\n"
            "        os.setsid()\n"
            "        if os.fork(): os._exit(0)\n"
            f"        {HOLD}        signal.pause()\n"
            "signal.pause()",
            id="daemons",
        ),
        pytest.param(
            "def hold():\n"
            f"    {HOLD}    signal.pause()\n"
            "for _ in range(2):\n"
            "    if os.fork() == 0:\n"
            "        threading.Thread(target=hold).start()\n"
            f"        ctypes.CDLL(None).syscall({call_numbers(os.uname().machine)['exit']}, 0)\n"
            "signal.pause()",
            id="processes whose first thread has ended",
        ),
        pytest.param(
            "class Held(threading.Thread):\n"
            "    def run(self):\n"
            "        if os.fork() == 0:\n"
            f"            {HOLD}            signal.pause()\n"
            "        signal.pause()\n"
            "Held().start()\nHeld().start()",
            id="children of threads",
        ),
        pytest.param(
            HOLD + "os.fork()\nfor n in range(len(held) >> 12): held[n << 12] = 1\nsignal.pause()",
            id="shared pages that become their own",
        ),
    ],
)
def test_what_all_processes_hold_together_is_limited(code):
    ended = run_program(IMPORTS + code, SMALL)
    assert ended.out_of_memory and ended.exit_code is None, ended
    enough = dataclasses.replace(SMALL, total_bytes=600 * MIB, wall_s=2)
    ended = run_program(IMPORTS + code, enough)
    assert not ended.out_of_memory and ended.exit_code is None, ended


def test_a_model_is_told_which_limit_it_was():
    code = IMPORTS + "os.fork()\n" + HOLD + "signal.pause()"
    assert (
        run_python(code, SMALL) == "[memory] ended: its processes together held more than 150 MiB"
    )


def test_page_tables_count():
    code = """
import mmap, ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for n in range(30000):  # each takes a page, and two of page tables
    place = libc.mmap((n + 1) << 30, 4096, 3, 0x100022, -1, 0)
    assert place == (n + 1) << 30, place
    ctypes.memset(place, 1, 1)
print("held")
signal.pause()
"""
    ended = run_program(code, dataclasses.replace(SMALL, memory_bytes=300 * MIB))
    assert ended.out_of_memory, ended


def test_pages_that_processes_share_count_once():
    code = """
import os, time
held = bytearray(b'x') * (90 << 20)
for _ in range(3):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(held[-1])
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)])
"""
    assert run_python(code, SMALL) == f"[{ord('x')}, {ord('x')}, {ord('x')}]"


def test_starting_other_programs_does_not_count_twice():
    code = """
import subprocess
held = bytearray(b'x') * (90 << 20)
for _ in range(100):
    subprocess.run(["/bin/true"], check=True)
print(len(held) >> 20)
"""
    assert run_python(code, SMALL) == "90"


@pytest.mark.parametrize(
    "make",
    [
        "open(name, 'w').close()",
        "os.mkdir(name)",
        "os.symlink('a' * 100, name)",
        "os.link('first', name)",
        "os.mkfifo(name)",
        "os.close(os.open('.', os.O_TMPFILE | os.O_RDWR)); open(name * 60, 'w').close()",
    ],
)
def test_how_many_files_there_are_is_limited(make):
    code = f"""
import os
open('first', 'w').close()
for number in range(1000):
    name = f"{{number:04}}"
    try:
        {make}
    except OSError as error:
        print(error.strerror, number < 100)
        break
"""
    assert run_python(code, PythonLimits(files=100)) == "No space left on device True"
    assert run_python(code, PythonLimits(files=2000)) == "[no output]"


def test_what_pipes_and_socket_pairs_hold_is_limited():
    code = """
import os, socket, time
def fill(end):
    os.set_blocking(end, False)
    count = 0
    try:
        while True:
            count += os.write(end, bytes(4096))
    except OSError:
        return count
report = os.dup(1)
for _ in range(20):
    try:
        if os.fork() == 0: break
    except OSError: pass
count, kept = 0, []
try:
    while True:
        kept.append(OPEN)
        count += sum(map(fill, kept[-1]))
except OSError:
    os.write(report, b"%d\\n" % count)
time.sleep(1)
"""
    pairs = "tuple(end.detach() for end in socket.socketpair())"
    for make, most in (("os.pipe()[1:]", 25 * MIB), (pairs, 200 * MIB)):
        text = run_python(code.replace("OPEN", make))
        counts = [int(line) for line in text.splitlines()]
        assert len(counts) > 5
        assert sum(counts) < most


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 1 << 20)", "PermissionError"),
        ("socket.socketpair()[0].setsockopt(1, socket.SO_SNDBUF, 1 << 22)", "PermissionError"),
        ("socket.send_fds(socket.socketpair()[0], [b'x'], [0])", "PermissionError"),
        ("os.splice(os.open('a', os.O_RDWR | os.O_CREAT), os.pipe()[1], 1)", "PermissionError"),
        ("mmap.mmap(-1, 4096)", "PermissionError"),
        ("open('/dev/zero')", "FileNotFoundError"),
        ("os.memfd_create('a')", "PermissionError"),
        ("os.setxattr('.', 'user.a', b'x')", "PermissionError"),
        ("os.sched_setaffinity(0, {0})", "PermissionError"),
    ],
)
def test_memory_that_no_sum_counts_cannot_be_had(code, error):
    text = run_python(f"import fcntl, mmap, os, signal, socket\n{code}")
    assert error in text.splitlines()[-2], text


@pytest.mark.parametrize(
    "call",
    [
        "semget(0, 32000, 0o1600)",
        "shmget(0, 1 << 20, 0o1600)",
        "msgget(0, 0o1600)",
        "syscall({mq_open}, b'a', 0o102, 0o600, None)",
        "syscall({userfaultfd}, 1)",
        "syscall({memfd_secret}, 0)",
        "syscall({io_uring_setup}, 8, bytes(200))",
        "syscall({io_setup}, 8, ctypes.byref(ctypes.c_long()))",
        "syscall({inotify_init1}, 0)",
        "syscall({keyctl}, 0, -3, 1)",
        "syscall({perf_event_open}, bytes(200), 0, -1, -1, 0)",
        "syscall({bpf}, 0, bytes(200), 72)",
        "syscall({personality}, 0x40000)",
        "syscall({unshare}, 0)",
        "syscall({process_vm_readv}, 1, None, 0, None, 0, 0)",
        "syscall({seccomp}, 2, 0, None)",
        "syscall({ptrace}, 0, 0, 0, 0)",
        "syscall({mount}, None, b'/', None, 1 << 18, None)",
        "syscall({clone}, 0x10000011, 0, 0, 0, 0)",
    ],
)
def test_calls_that_are_not_listed_fail(call):
    numbers = call_numbers(os.uname().machine)
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.{call.format(**numbers)}, os.strerror(ctypes.get_errno()))
"""
    assert run_python(code) == "-1 Operation not permitted"


@pytest.mark.parametrize(
    "code",
    [
        "import numpy\nprint(int(numpy.linalg.det(numpy.eye(300))))",
        "import numpy, scipy.optimize, sympy\nprint(scipy.optimize.root_scalar(sympy.lambdify("
        "sympy.Symbol('x'), 'x - 1'), bracket=(0, 3)).converged + 0)",
        "import asyncio\nprint(asyncio.run(asyncio.sleep(0.01, 1)))",
        "from multiprocessing import Pool\nwith Pool(4) as pool: print(*pool.map(abs, [-1]))",
        "from concurrent.futures import ThreadPoolExecutor as Threads\n"
        "with Threads(8) as threads: print(*list(threads.map(abs, [1] * 99))[:1])",
        "from concurrent.futures import ProcessPoolExecutor as Processes\n"
        "with Processes(2) as processes: print(*processes.map(abs, [-1]))",
        "from multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=9)\nmemory.unlink()\nprint(1)",
        "import subprocess\nprint(subprocess.run('echo 1 | cat', shell=True, "
        "capture_output=True, text=True).stdout)",
        "import sqlite3\nprint(*sqlite3.connect('a.db').execute('select 1').fetchone())",
        "import os, shutil\nopen('a', 'w').write('1')\nshutil.copy2('a', 'b')\n"
        "os.chmod('b', 0o600)\nshutil.move('b', 'c')\nprint(open('c').read())",
    ],
)
def test_ordinary_programs_run(code):
    assert run_python(code) == "1"


def test_how_many_timers_there_are_is_limited():
    code = """
import ctypes
libc, timer, count = ctypes.CDLL(None), ctypes.c_void_p(), 0
while count < 1000 and libc.timer_create(0, None, ctypes.byref(timer)) == 0:
    count += 1
print(count)
"""
    assert run_python(code) == "256"


def test_pool_sizes_follow_the_cpus_of_which_there_are_few():
    code = "import os\nprint(len(os.sched_getaffinity(0)), os.cpu_count())"
    few = min(4, len(os.sched_getaffinity(0)))
    assert run_python(code) == f"{few} {few}"


def test_no_semaphores_are_left_on_the_machine():
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.semctl(0, 0, 19, None)  # SEM_INFO: the highest index in use
    run_python("import ctypes\nfor _ in range(9): ctypes.CDLL(None).semget(0, 9, 0o1600)")
    assert libc.semctl(0, 0, 19, None) <= before
