"""Runs a program in new Linux namespaces; a script that imports nothing from this package.

    python -I -S isolation.py REQUEST

    caller ── guard      this script: kills init at the limit on wall time or on total memory, then
                │        reports
                └── init      process 1 of the new namespaces; when it ends, so do all below it
                      └── program     an ordinary user's, without capabilities

The program sees an empty network (without loopback), only its own processes, the folders of the
interpreter and of system libraries, read-only, and one folder of its own, in memory. If the caller
is root, the program has another user number outside the namespaces too, since resource limits do
not bind root.

REQUEST is JSON: `report` (a file descriptor), `wall_s`, `total_bytes` (memory of all processes
together), `folder` (the program's, inside), `folder_bytes` and `folder_files`, `visible` (path
inside -> path outside, without symbolic links), `calls` (the filter of system calls, in
hexadecimal: `call_filter`), `kcmp` (the number of that call), `group` (folder of a cgroup to enter,
or null) and `command`. The report is `exit CODE` (128 + signal after a signal), `timeout`,
`memory`, or `terminated` after SIGTERM; any other report is the error that prevented the sandbox.
Needs Linux 5.14 or newer, where the limit on processes counts those of the user namespace alone.

Total memory: every 20 ms, and more often near the limit, the guard sums the memory of all
processes, page tables included and shared pages counted once. Between two sums memory can grow up
to the number of processes times the address space of each, and page tables. A cgroup closes this
gap.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping

SUM_INTERVAL_S = 0.02
# Differences of niceness: the guard's, or the program's where the guard may not lower its own.
GUARD_NICENESS, PROGRAM_NICENESS = -10, 5
MOST_CPUS = 4  # fewer CPUs fill memory more slowly; process pools start one process per CPU
# User and group of the program; outside the namespaces only where the caller is root.
NOBODY = 65534

# linux/sched.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
EVERY_NAMESPACE = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC
EVERY_NAMESPACE |= CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
# linux/mount.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
READ_ONLY, NO_SETUID, NO_DEVICES = 0x1, 0x2, 0x4
# linux/prctl.h, linux/seccomp.h, linux/kcmp.h
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
KCMP_VM = 1

AWAITED = (signal.SIGCHLD, signal.SIGTERM)  # process 1 has ended; the caller wants all to end

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, action: str) -> None:
    """Raises an OSError that names the action if a call of libc failed."""
    if result != 0:
        raise OSError(f"cannot {action}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = libc.mount(*arguments, ctypes.c_ulong(flags), options.encode())
    check(result, f"mount {source} on {target}")


def restrict(path: str, attributes: int, *, recursive: bool) -> None:
    """Adds attributes to the mount at a path, and to those below it if `recursive`."""
    change = struct.pack("QQQQ", attributes, 0, 0, 0)  # struct mount_attr
    result = libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        AT_FDCWD,
        os.fsencode(path),
        AT_RECURSIVE if recursive else 0,
        change,
        ctypes.c_size_t(len(change)),
    )
    check(result, f"restrict the mount {path}")


def enter_namespaces() -> None:
    """Enters new namespaces; that of processes begins with the next child.

    Root maps two users, itself (to mount) and nobody (for the program); other callers can map only
    themselves, as nobody inside.
    """
    if os.geteuid() == 0:
        both = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        maps = {"uid_map": both, "gid_map": both}
    else:
        maps = {"setgroups": "deny"}  # a precondition for mapping groups
        maps["uid_map"] = f"{NOBODY} {os.geteuid()} 1\n"
        maps["gid_map"] = f"{NOBODY} {os.getegid()} 1\n"
    here = f"/proc/{os.getpid()}"
    wait, go = os.pipe()
    helper = os.fork()  # writes the maps from outside the new namespace
    if helper == 0:
        os.close(go)
        os.read(wait, 1)
        try:
            for name, text in maps.items():
                with open(f"{here}/{name}", "w") as file:
                    file.write(text)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(wait)
    result = libc.unshare(EVERY_NAMESPACE)
    os.close(go)
    _, status = os.waitpid(helper, 0)
    check(result, "make namespaces")
    if status != 0:
        raise OSError(f"cannot map users: {maps}")


def enter_group(folder: str) -> None:
    """Enters a cgroup if possible; the other limits do not depend on it."""
    with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", "w") as file:
        file.write("0")


def bind(source: str, target: str) -> None:
    """Mounts a file or folder at a second path."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, None, MS_BIND | MS_REC)


def enter_root(visible: Mapping[str, str], folder: str, size: int, files: int) -> None:
    """Makes the program's file system, and changes to the program's folder.

    /          in memory, read-only at the end
    /host      the previous root, detached after the binds
    /inside    the program's root: a folder and no mount, so that the process counts as chrooted and
               the kernel refuses it user namespaces, in which it would regain capabilities
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.chdir("/tmp")
    os.mkdir("host")
    os.mkdir("inside")
    check(libc.pivot_root(b".", b"host"), "change the root")
    os.chdir("/")
    for inside, outside in visible.items():
        bind("/host" + outside, "/inside" + inside)
        restrict("/inside" + inside, READ_ONLY | NO_SETUID | NO_DEVICES, recursive=True)
    for device in ("/dev/null", "/dev/random", "/dev/urandom"):  # no zero: mappings evade the sum
        bind("/host" + device, "/inside" + device)
        restrict("/inside" + device, NO_SETUID, recursive=True)
    os.symlink(folder, "/inside/dev/shm")  # for the locks of multiprocessing
    os.mkdir("/inside" + folder)
    inodes = files + 1  # one for the folder itself
    own = f"size={size},nr_inodes={inodes},mode=700,uid={NOBODY},gid={NOBODY}"
    mount("tmpfs", "/inside" + folder, "tmpfs", MS_NOSUID | MS_NODEV, own)
    check(libc.umount2(b"/host", MNT_DETACH), "detach the old root")
    restrict("/", READ_ONLY, recursive=False)
    os.chroot("/inside")
    os.chdir(folder)


def drop_rights(*, was_root: bool) -> None:
    """Becomes nobody permanently; the next exec drops remaining capabilities."""
    if was_root:
        os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")
    check(libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "end with the guard")


class FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def filter_calls(instructions: bytes) -> None:
    """Installs a filter of all further system calls, also of children."""
    program = FilterProgram(len(instructions) // 8, instructions)
    result = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    check(result, "filter system calls")


def restrict_cpus() -> None:
    """Restricts the process to a few CPUs, chosen differently by each sandbox."""
    cpus = sorted(os.sched_getaffinity(0))
    start = os.getppid() % len(cpus)
    os.sched_setaffinity(0, (cpus[start:] + cpus[:start])[:MOST_CPUS])


def run_init(request: dict, *, was_root: bool) -> int:
    """Process 1: prepares the sandbox, runs the program in it, and returns its exit code."""
    os.umask(0o022)  # the program is another user, and must read the files made here
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # out of memory, the kernel kills the sandbox first
    restrict_cpus()
    enter_root(
        request["visible"], request["folder"], request["folder_bytes"], request["folder_files"]
    )
    drop_rights(was_root=was_root)
    filter_calls(bytes.fromhex(request["calls"]))
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execv(request["command"][0], request["command"])
    while True:  # process 1 also reaps orphans of the program
        process, status = os.wait()
        if process == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def prioritise_guard() -> int:
    """Gives the guard priority, also on a busy machine; returns the niceness of the program."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness + GUARD_NICENESS)
    except PermissionError:
        return niceness + PROGRAM_NICENESS  # a smaller difference: it slows the program down
    return niceness


def read(proc: int, path: str) -> str:
    """The content of a file of /proc; empty if the process has ended."""
    try:
        with open(os.open(path, os.O_RDONLY, dir_fd=proc)) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads_of(proc: int, process: str) -> list[str]:
    """The threads of a process; none if it has ended."""
    try:
        folder = os.open(f"{process}/task", os.O_RDONLY, dir_fd=proc)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return os.listdir(folder)
    finally:
        os.close(folder)


def processes_below(proc: int, init: int) -> list[str]:
    """All descendants of process 1, which adopts orphans; parents come first."""
    found: dict[str, None] = {}
    for _ in range(2):  # twice: process 1 may have adopted some during the first pass
        pending = [str(init)]
        while pending:
            process = pending.pop()
            for thread in threads_of(proc, process):
                children = read(proc, f"{process}/task/{thread}/children").split()
                pending += [child for child in children if child not in found]
                found |= dict.fromkeys(children)
    return [*found]


def kilobytes(text: str, *names: str) -> int:
    """The sum of the named lines, `NAME:  1234 kB`, of a file of /proc."""
    lines = (line.partition(":") for line in text.splitlines())
    return sum(int(size.split()[0]) for name, _, size in lines if name in names)


def living_thread(proc: int, process: str) -> tuple[str, str] | None:
    """A thread with memory and its status; a process outlives its first thread."""
    for thread in threads_of(proc, process):
        status = read(proc, f"{process}/task/{thread}/status")
        if kilobytes(status, "VmRSS", "VmSwap") > 0:
            return thread, status
    return None


def proportional_kilobytes(proc: int, thread: str, status: str) -> int:
    """Memory of a process, with its share of pages that it shares with others."""
    try:
        return kilobytes(read(proc, f"{thread}/smaps_rollup"), "Pss", "SwapPss")
    except PermissionError:
        return kilobytes(status, "VmRSS", "VmSwap")  # an upper bound


def memory_below(proc: int, init: int, limit: int, kcmp: int) -> int:
    """Bytes of memory of all processes below process 1, page tables included.

    The first, fast sum counts shared pages once per process. Above the limit, an exact sum counts
    them in proportion. A process that has not called exec yet shares its parent's address space,
    which then counts once, for the parent. A second exact sum excludes changes during the first.
    """
    for is_exact in (False, True, True):
        total = 0
        counted: list[str] = []
        for process in processes_below(proc, init):
            if (living := living_thread(proc, process)) is None:
                continue
            thread, status = living
            if not is_exact:
                total += kilobytes(status, "VmRSS", "VmSwap", "VmPTE")
            elif not any(same_memory(kcmp, thread, other) for other in counted):
                total += proportional_kilobytes(proc, thread, status) + kilobytes(status, "VmPTE")
                counted.append(thread)
        if total << 10 <= limit:
            break
    return total << 10


def same_memory(kcmp: int, thread: str, other: str) -> bool:
    """Whether two threads share one address space, by kcmp(2) with the machine's call number."""
    numbers = (ctypes.c_long(int(number)) for number in (kcmp, thread, other, KCMP_VM, 0, 0))
    return libc.syscall(*numbers) == 0


def wait_for(init: int, proc: int, request: dict) -> str:
    """Waits for the first event, as in the report: process 1's `exit`, or a limit."""
    end = time.monotonic() + request["wall_s"]
    limit = request["total_bytes"]
    pause_s = SUM_INTERVAL_S
    while (left_s := end - time.monotonic()) > 0:
        if came := signal.sigtimedwait(AWAITED, min(pause_s, left_s)):
            return "exit" if came.si_signo == signal.SIGCHLD else "terminated"
        started = time.process_time()
        total = memory_below(proc, init, limit, request["kcmp"])
        if total > limit:
            return "memory"
        shorter_s = SUM_INTERVAL_S * max(0.1, 1 - total / limit)
        pause_s = max(shorter_s, 4 * (time.process_time() - started))
    return "timeout"


def main() -> None:
    """Runs the guard."""
    request = json.loads(sys.argv[1])
    report = request["report"]
    os.set_inheritable(report, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    was_root = os.geteuid() == 0
    try:
        niceness = prioritise_guard()
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # before the namespaces hide it
        if not os.path.exists("/proc/thread-self/children"):
            raise OSError("cannot find processes: the kernel lacks /proc/PID/task/TID/children")
        if request["group"] is not None:
            enter_group(request["group"])
        enter_namespaces()
        signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
        init = os.fork()
    except OSError as error:
        os.write(report, f"{error}\n".encode())
        return
    if init == 0:
        code = 1
        try:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
            code = run_init(request, was_root=was_root)
        except OSError as error:
            os.write(report, f"{error}\n".encode())
        finally:
            os._exit(code)
    outcome = wait_for(init, proc, request)
    if outcome != "exit":
        os.kill(init, signal.SIGKILL)
    _, status = os.waitpid(init, 0)
    if outcome == "exit":
        code = os.waitstatus_to_exitcode(status)
        outcome = f"exit {code if code >= 0 else 128 - code}"
    os.write(report, outcome.encode())


if __name__ == "__main__":
    main()
