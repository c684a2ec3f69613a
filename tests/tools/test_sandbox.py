"""Attacks on the sandbox, really run; each is bounded by limits that hold outside it too."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest

from rmas_jax.tools import PythonLimits, SandboxError, run_python, sandbox
from rmas_jax.tools.call_filter import call_filter
from rmas_jax.tools.sandbox import check_sandbox, open_program, run_program

ROOT = Path(__file__).parents[2]
CALL = "from rmas_jax.tools import PythonLimits, run_python; "
TAKE_NAME = "import ctypes; ctypes.CDLL(None).prctl(15, {!r}.encode()); "  # children have it too


def running(name: str) -> int:
    """How many processes have this name, anywhere on the machine."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            count += (entry / "comm").read_text().strip() == name
        except OSError:  # it has just ended
            continue
    return count


@pytest.fixture
def name():
    """A name for processes that no others have."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def unchecked():
    """Whether the sandbox holds is to be found out in this test, and again after it."""
    check_sandbox.cache_clear()
    yield
    check_sandbox.cache_clear()


def test_a_fork_bomb_stays_small_and_leaves_nothing(name):
    check_sandbox()  # the limit on processes holds here, or this raises
    bomb = TAKE_NAME.format(name) + (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    )
    limits = PythonLimits(wall_s=2, processes=20)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run_program(bomb, limits)))
    thread.start()
    most = 0
    while thread.is_alive():
        most = max(most, running(name))
        time.sleep(0.05)
    assert ended[0].exit_code is None
    assert 10 < most <= limits.processes
    assert running(name) == 0


def orphan(name: str, sleep_s: float) -> str:
    """A program that ends once a child of its child, in a session of its own, has started."""
    return TAKE_NAME.format(name) + (
        "import os, time\nread, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.write(write, b'up')\n        time.sleep({sleep_s})\n"
        "    os._exit(0)\n"
        "print(os.read(read, 2).decode())\n"
    )


def test_a_child_ends_with_the_program(name):
    assert run_python(orphan(name, 60)) == "up"
    assert running(name) == 0


def test_without_a_sandbox_a_child_can_outlive_the_program(name):
    assert run_python(orphan(name, 1), unsafe_without_sandbox=True) == "up"
    assert running(name) >= 1
    while running(name):
        time.sleep(0.05)


def test_a_program_ends_at_its_limit_though_its_caller_has_been_killed(name):
    code = TAKE_NAME.format(name) + "import time; time.sleep(60)"
    caller = subprocess.Popen(
        [sys.executable, "-c", f"{CALL}run_python({code!r}, PythonLimits(wall_s=2))"], cwd=ROOT
    )
    while not running(name):
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    assert running(name) == 1
    end = time.monotonic() + 10
    while running(name) and time.monotonic() < end:
        time.sleep(0.05)
    assert running(name) == 0


CHANNEL = "import os\nend = int(os.environ['CHANNEL'])\n"


def test_an_open_program_exchanges_messages_and_ends_where_it_is_left(name):
    code = TAKE_NAME.format(name) + CHANNEL
    code += "while text := os.read(end, 9): os.write(end, text.upper())\nwhile True: pass"
    with open_program(code, PythonLimits()) as program:
        for text in (b"one", b"two"):
            program.channel.sendall(text)
            assert program.channel.recv(9) == text.upper()
        assert running(name) == 1
    assert running(name) == 0


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("os.write(end, b'x'); raise SystemExit(3)", 3), ("os.write(end, b'x')\nwhile True: 1", None)],
)
def test_the_channel_of_an_open_program_ends_with_it(code, exit_code):
    with open_program(CHANNEL + code, PythonLimits(wall_s=2)) as program:
        assert [program.channel.recv(9), program.channel.recv(9)] == [b"x", b""]
        assert program.wait().exit_code == exit_code


def test_memory_is_limited():
    assert "MemoryError" in run_python("bytearray(10 << 30)")
    assert run_python("print(len(bytearray(100 << 20)))") == str(100 << 20)
    few = PythonLimits(memory_bytes=64 << 20)
    assert "MemoryError" in run_python("bytearray(100 << 20)", few)


def test_endless_printing_ends_and_is_kept_in_part():
    limits = PythonLimits(file_bytes=1 << 20, output_bytes=1000)
    for code in ("while True: print('x' * 999)", "while True: os.write(2, b'x' * 999)"):
        ended = run_program("import os\n" + code, limits)
        assert ended.exit_code not in (0, None)  # writing fails, long before the wall limit
        assert len(ended.stdout) + len(ended.stderr) < 3000
        assert any(f"of {1 << 20} bytes" in text for text in (ended.stdout, ended.stderr))


def test_files_are_limited_one_by_one_and_all_together():
    limits = PythonLimits(file_bytes=1 << 20)
    assert "File too large" in run_python("open('a', 'wb').write(bytes(2 << 20))", limits)
    many = "for n in range(9): open(str(n), 'wb').write(bytes(1 << 19))"
    assert "No space left" in run_python(many, limits)
    assert run_python(many, PythonLimits(file_bytes=8 << 20)) == "[no output]"


def test_nothing_outside_the_folder_can_be_written(tmp_path):
    folders = ["/", "/usr", "/etc", "/dev", "/tmp", sys.prefix, sys.base_prefix, str(tmp_path)]
    code = f"""
import os
for folder in {folders}:
    for name in (folder, os.path.dirname(folder)):
        try:
            open(os.path.join(name, "mark"), "w")
            print("wrote in", name)
        except OSError:
            pass
for path in ("/inside.py", {sys.executable!r}):
    try:
        open(path, "r+")
        print("opened", path)
    except OSError:
        pass
open("mark", "w")
print(os.listdir("."))
"""
    assert run_python(code) == "['mark']"
    assert not any((Path(folder) / "mark").exists() for folder in folders)


def test_home_and_project_cannot_be_read():
    with tempfile.NamedTemporaryFile("w", dir=Path.home()) as file:
        file.write("secret")
        file.flush()
        paths = [file.name, str(ROOT / "README.md"), __file__, "/etc/passwd", "/proc/self/environ"]
        code = f"for path in {paths}:\n    try: print(open(path).read())\n    except OSError: pass"
        assert run_python(code) == "[no output]"
        assert "secret" in run_python(code, unsafe_without_sandbox=True)


def test_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", "secret")
    assert "secret" not in run_python("import os\nprint(dict(os.environ))")


def test_open_files_are_not_passed_on(tmp_path):
    code = """
import os
for descriptor in range(256):
    try:
        os.fstat(descriptor)
        print(descriptor, end=" ")
    except OSError:
        pass
"""
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert run_python(code) == "0 1 2"


def test_no_network_not_even_the_own_machine():
    families = "(socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 40)"  # vsock
    code = f"""
import socket
for family in {families}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            print(socket.socket(family, kind))
        except PermissionError:
            pass
print([end.fileno() > 0 for end in socket.socketpair()])
"""
    assert run_python(code) == "[True, True]"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        address = ("127.0.0.1", server.getsockname()[1])
        connect = f"import socket\nsocket.create_connection({address})\nprint('connected')"
        assert "connected" not in run_python(connect)
        assert run_python(connect, unsafe_without_sandbox=True) == "connected"
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):  # there was one connection, not two
            server.setblocking(False)
            server.accept()


def test_there_is_no_network_behind_the_filter_of_system_calls(monkeypatch):
    sockets = functools.partial(call_filter, also=["socket", "connect"])
    monkeypatch.setattr(sandbox, "call_filter", sockets)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.0.0.1", server.getsockname()[1])
        text = run_python(f"import socket\nsocket.create_connection({address})")
    assert "Network is unreachable" in text


def test_the_parent_and_all_others_live_on():
    code = f"""
import os, signal
for process in ({os.getpid()}, {os.getppid()}, os.getppid()):
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass
print("alone with", os.getppid())
"""
    assert run_python(code) == "alone with 1"


def test_rights_cannot_be_won_back():
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
print(os.getuid(), os.getgroups(), libc.unshare(0x10000000), libc.unshare(0x20000))
for action in (lambda: os.setuid(0), lambda: os.chroot("/sandbox"), lambda: os.nice(-5)):
    try:
        print(action())
    except OSError as error:
        print(error.strerror)
"""
    lines = run_python(code).splitlines()
    user, rest = lines[0].split(" ", 1)
    assert user == "65534" and rest.endswith("-1 -1")
    assert len(lines) == 4 and set(lines[1:]) <= {"Operation not permitted", "Invalid argument"}


def test_where_the_sandbox_cannot_be_set_up_nothing_runs(monkeypatch, tmp_path, unchecked):
    monkeypatch.setattr(sandbox, "FOLDER", "/usr")  # is there already
    with pytest.raises(SandboxError, match=r"File exists.*Linux 5\.14.*unsafe_without_sandbox"):
        run_python(f"open({str(tmp_path / 'mark')!r}, 'w')")
    assert not (tmp_path / "mark").exists()


def test_where_namespaces_are_forbidden_as_in_a_container_nothing_runs(tmp_path):
    program = f"""{CALL}
from rmas_jax.tools import call_filter, isolation
machine = isolation.os.uname().machine
others = {{*call_filter.call_numbers(machine)}} - {{"unshare"}}
isolation.libc.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
isolation.filter_calls(call_filter.call_filter(machine, also=others))
run_python("open({str(tmp_path / "mark")!r}, 'w')")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "SandboxError: the sandbox cannot be set up: " in ended.stderr
    assert "make namespaces" in ended.stderr
    assert not (tmp_path / "mark").exists()


def test_a_sandbox_with_holes_is_found_out(monkeypatch, unchecked):
    def not_isolated(limits, streams):
        return contextlib.nullcontext(lambda: sandbox._run_with_all_rights(limits, streams))

    monkeypatch.setattr(sandbox, "_isolated", not_isolated)
    with pytest.raises(SandboxError) as caught:
        run_python("print(1)")
    for hole in ("reads files", "writes files", "connects", "sees processes", "limit on files"):
        assert hole in str(caught.value)


@pytest.mark.parametrize(
    ("line", "other", "hole"),
    [
        ("SUM_INTERVAL_S = 0.02", "SUM_INTERVAL_S = 100", "limit on the memory of all processes"),
        (",nr_inodes={inodes}", "", "exceeds its limit on files"),
        ('filter_calls(bytes.fromhex(request["calls"]))', "pass", "makes semaphores that outlive"),
    ],
)
def test_a_sandbox_without_one_of_its_walls_is_found_out(
    monkeypatch, tmp_path, unchecked, line, other, hole
):
    weaker = tmp_path / "isolation.py"
    text = sandbox.ISOLATION.read_text()
    assert text.count(line) == 1
    weaker.write_text(text.replace(line, other))
    monkeypatch.setattr(sandbox, "ISOLATION", weaker)
    with pytest.raises(SandboxError, match=hole):
        run_python("print(1)")


def test_on_another_kind_of_cpu_nothing_runs(monkeypatch, unchecked):
    monkeypatch.setattr(sandbox, "ARCHITECTURES", {"riscv64": 0})
    with pytest.raises(SandboxError, match=r"the machine must be one of riscv64, got "):
        run_python("print(1)")


@pytest.mark.parametrize(
    "name", ["wall_s", "cpu_s", "memory_bytes", "total_bytes", "processes", "file_bytes", "files"]
)
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"PythonLimits.{name} must be above 0, got 0"):
        PythonLimits(**{name: 0})
