"""Starts a program in Linux namespaces of its own; run as a script, it imports nothing of ours.

    python -I -S isolation.py REQUEST

    caller ── guard      this script: kills what is below at the wall limit, or when all of it
                │        together holds more memory than it may; then reports
                └── init      process 1 of the new namespaces; when it ends, all below it end
                      └── program     an ordinary user's, without any capability

The program sees an empty network (not even loopback is up), only its own processes, the folders
of the interpreter and the system's libraries, read-only, and one folder of its own, in memory.
It has a user number that is not root's outside either, which root needs for limits to bind it.

REQUEST is JSON: `report` (a file descriptor), `wall_s`, `total_bytes` (memory of all processes
together), `folder` (the program's, inside), `folder_bytes` and `folder_files`, `visible` (path
inside -> path outside, without symbolic links), `calls` (the filter of system calls, in
hexadecimal: `call_filter`), `kcmp` (the number of that call), `group` (folder of a cgroup to enter,
or null) and `command`. The report is `exit CODE` (128 + signal where one ended the program),
`timeout`, `memory`, or `terminated` after SIGTERM; anything else says why the sandbox could not be
set up. Needs Linux 5.14, where a limit on processes counts those of the user namespace alone.

The sum of memory: the guard adds up what processes hold, shared pages once and page tables
included, every 20 ms, and more often near the limit. In between they can grow, at most to the
number of processes times the address space of each, and their page tables. A cgroup, where there is
one, leaves no such gap.
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

LOOK_S = 0.02  # between two sums of memory
AHEAD, BACK = 10, 5  # niceness: of the guard, if it may; of the program, if not
MOST_CPUS = 4  # fewer grow less in between; pools of processes start one for each
NOBODY = 65534  # user and group of the program inside, and outside too where the caller is root

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
    """Raises OSError, naming the action, if a call of libc failed."""
    if result != 0:
        raise OSError(f"cannot {action}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = libc.mount(*arguments, ctypes.c_ulong(flags), options.encode())
    check(result, f"mount {source} on {target}")


def restrict(path: str, attributes: int, *, recursive: bool) -> None:
    """Adds attributes to the mount at a path, and to all below it if `recursive`."""
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
    """Leaves the caller's network, users and mounts; the next child is in a new process namespace.

    Root maps two users, itself (to mount) and nobody (for the program); others can only map
    themselves, and become nobody inside.
    """
    if os.geteuid() == 0:
        both = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        maps = {"uid_map": both, "gid_map": both}
    else:
        maps = {"setgroups": "deny"}  # without it no groups can be mapped
        maps["uid_map"] = f"{NOBODY} {os.geteuid()} 1\n"
        maps["gid_map"] = f"{NOBODY} {os.getegid()} 1\n"
    here = f"/proc/{os.getpid()}"
    wait, go = os.pipe()
    helper = os.fork()  # maps are written from outside
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
        raise OSError(f"cannot map users into the namespace: {maps}")


def enter_group(folder: str) -> None:
    """Enters a cgroup, if that is possible; the other limits are the same without it."""
    with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", "w") as file:
        file.write("0")


def bind(source: str, target: str) -> None:
    """Shows a file or folder at another place, too."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, None, MS_BIND | MS_REC)


def enter_root(visible: Mapping[str, str], folder: str, size: int, files: int) -> None:
    """Makes the only file system that the program sees, and goes to the program's folder.

    /          in memory, sealed
    /host      what was / before, until everything is bound; then detached
    /inside    the program's root: a folder, so that it counts as chrooted and the kernel refuses
               it further user namespaces, in which it would have capabilities again
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
    for device in ("/dev/null", "/dev/random", "/dev/urandom"):  # of zero, mappings evade the sum
        bind("/host" + device, "/inside" + device)
        restrict("/inside" + device, NO_SETUID, recursive=True)
    os.symlink(folder, "/inside/dev/shm")  # for the locks of multiprocessing
    os.mkdir("/inside" + folder)
    inodes = files + 1  # the folder itself is one
    own = f"size={size},nr_inodes={inodes},mode=700,uid={NOBODY},gid={NOBODY}"
    mount("tmpfs", "/inside" + folder, "tmpfs", MS_NOSUID | MS_NODEV, own)
    check(libc.umount2(b"/host", MNT_DETACH), "detach the old root")
    restrict("/", READ_ONLY, recursive=False)
    os.chroot("/inside")
    os.chdir(folder)


def drop_rights(*, was_root: bool) -> None:
    """Becomes nobody, for good; capabilities that are left end with the next exec."""
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
    """Lets a filter decide on all system calls from here on, and in all children."""
    program = FilterProgram(len(instructions) // 8, instructions)
    result = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    check(result, "filter system calls")


def stay_on_few_cpus() -> None:
    """Keeps to a few of the CPUs that there are, others for each sandbox."""
    cpus = sorted(os.sched_getaffinity(0))
    start = os.getppid() % len(cpus)
    os.sched_setaffinity(0, (cpus[start:] + cpus[:start])[:MOST_CPUS])


def run_init(request: dict, *, was_root: bool) -> int:
    """Process 1: prepares the sandbox, runs the program in it, and gives its exit code."""
    os.umask(0o022)  # the program is somebody else, and has to read what is made here
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, the kernel takes the sandbox first
    stay_on_few_cpus()
    enter_root(
        request["visible"], request["folder"], request["folder_bytes"], request["folder_files"]
    )
    drop_rights(was_root=was_root)
    filter_calls(bytes.fromhex(request["calls"]))
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execv(request["command"][0], request["command"])
    while True:  # orphans of the program are ours
        process, status = os.wait()
        if process == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def step_ahead() -> int:
    """Makes the guard look in time on a busy machine, too; gives the niceness for the program."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness - AHEAD)
    except PermissionError:  # which costs speed on a busy machine, so it is less
        return niceness + BACK
    return niceness


def read(proc: int, path: str) -> str:
    """A file of /proc; empty where the process has just ended."""
    try:
        with open(os.open(path, os.O_RDONLY, dir_fd=proc)) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads_of(proc: int, process: str) -> list[str]:
    """The threads of a process."""
    try:
        folder = os.open(f"{process}/task", os.O_RDONLY, dir_fd=proc)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return os.listdir(folder)
    finally:
        os.close(folder)


def processes_below(proc: int, init: int) -> list[str]:
    """All descendants of process 1, which adopts those whose parents end; parents come first."""
    found: dict[str, None] = {}
    for _ in range(2):  # again: some may have been adopted meanwhile
        pending = [str(init)]
        while pending:
            process = pending.pop()
            for thread in threads_of(proc, process):
                children = read(proc, f"{process}/task/{thread}/children").split()
                pending += [child for child in children if child not in found]
                found |= dict.fromkeys(children)
    return [*found]


def kilobytes(text: str, *names: str) -> int:
    """The sum of some lines of a file of /proc, `NAME:  1234 kB`."""
    lines = (line.partition(":") for line in text.splitlines())
    return sum(int(size.split()[0]) for name, _, size in lines if name in names)


def living_thread(proc: int, process: str) -> tuple[str, str] | None:
    """A thread of a process that has memory, and its status; the first one may have ended."""
    for thread in threads_of(proc, process):
        status = read(proc, f"{process}/task/{thread}/status")
        if kilobytes(status, "VmRSS", "VmSwap") > 0:
            return thread, status
    return None


def fair_kilobytes(proc: int, thread: str, status: str) -> int:
    """What a process holds, of pages that it shares with others a fraction."""
    try:
        return kilobytes(read(proc, f"{thread}/smaps_rollup"), "Pss", "SwapPss")
    except PermissionError:
        return kilobytes(status, "VmRSS", "VmSwap")  # too much at worst


def memory_below(proc: int, init: int, limit: int, kcmp: int) -> int:
    """Bytes that the processes below process 1 hold together, page tables included.

    Quickly at first: pages that processes share count for each of them. If that is above the limit,
    fairly; a process and what it starts share everything until that executes a program, and count
    once, the parent first, since it keeps what they share. And once more: some may have changed.
    """
    for fairly in (False, True, True):
        total = 0
        counted: list[str] = []
        for process in processes_below(proc, init):
            if (living := living_thread(proc, process)) is None:
                continue
            thread, status = living
            if not fairly:
                total += kilobytes(status, "VmRSS", "VmSwap", "VmPTE")
            elif not any(same_memory(kcmp, thread, other) for other in counted):
                total += fair_kilobytes(proc, thread, status) + kilobytes(status, "VmPTE")
                counted.append(thread)
        if total << 10 <= limit:
            break
    return total << 10


def same_memory(kcmp: int, thread: str, other: str) -> bool:
    """Whether two threads share one address space (kcmp(2), whose number differs by machine)."""
    numbers = (ctypes.c_long(int(number)) for number in (kcmp, thread, other, KCMP_VM, 0, 0))
    return libc.syscall(*numbers) == 0


def wait_for(init: int, proc: int, request: dict) -> str:
    """Waits for process 1 to end; gives what comes first, as in the report, or `exit`."""
    end = time.monotonic() + request["wall_s"]
    limit = request["total_bytes"]
    pause_s = LOOK_S
    while (left_s := end - time.monotonic()) > 0:
        if came := signal.sigtimedwait(AWAITED, min(pause_s, left_s)):
            return "exit" if came.si_signo == signal.SIGCHLD else "terminated"
        begun = time.process_time()
        total = memory_below(proc, init, limit, request["kcmp"])
        if total > limit:
            return "memory"
        near = LOOK_S * max(0.1, 1 - total / limit)
        pause_s = max(near, 4 * (time.process_time() - begun))
    return "timeout"


def main() -> None:
    """The guard."""
    request = json.loads(sys.argv[1])
    report = request["report"]
    os.set_inheritable(report, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    was_root = os.geteuid() == 0
    try:
        niceness = step_ahead()
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # out of sight soon
        if not os.path.exists("/proc/thread-self/children"):
            raise OSError("cannot find processes: this kernel has no /proc/PID/task/TID/children")
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
