"""The allowed system calls of code in the sandbox, as a filter for the kernel (seccomp).

Closed by default: a call that is not listed here fails with EPERM if it is in the table, else with
ENOSYS, at which the C library falls back to an older call. Not listed are calls that

* hold memory outside a process's address space and the folder's size: System V and POSIX queues,
  semaphores and segments, `memfd_create`, `memfd_secret`, keys, `splice` and related calls (pages
  in a pipe outlive their file), asynchronous input and output, `inotify`;
* open sockets (some families, such as vsock, have no namespace) or pass files through them;
* need rights that the sandbox has dropped, or change namespaces, mounts, clocks, schedulers;
* read or write other processes' memory (`ptrace`, `process_vm_readv`, `userfaultfd`, `kcmp`).

`system_calls.json` has the numbers of all calls.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

NUMBERS = Path(__file__).with_name("system_calls.json")
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

ALLOWED = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fdatasync fgetxattr
        flistxattr flock fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64
        getxattr lchown lgetxattr link linkat listxattr llistxattr lseek lstat mkdir mkdirat mknod
        mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2
        read readlink readlinkat readv rename renameat renameat2 rmdir stat statfs statx symlink
        symlinkat truncate umask unlink unlinkat utime utimensat utimes write writev
    """,
    "waiting for files": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
        pipe pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime
        timerfd_settime
    """,
    "socket pairs": """
        getpeername getsockname getsockopt recvfrom sendto shutdown
    """,
    "memory": """
        brk madvise membarrier mprotect mremap msync munmap pkey_alloc pkey_free pkey_mprotect
    """,
    "processes and threads": """
        arch_prctl execve execveat exit exit_group fork futex get_robust_list get_thread_area
        getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid
        pidfd_open pidfd_send_signal prlimit64 rseq sched_get_priority_max sched_get_priority_min
        sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
        sched_yield set_robust_list set_tid_address setpgid setrlimit setsid vfork wait4 waitid
    """,
    "signals and time": """
        alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday kill nanosleep
        pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
        rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack tgkill
        time timer_create timer_delete timer_getoverrun timer_gettime timer_settime times tkill
    """,
    "facts": """
        capget getegid geteuid getgid getgroups getrandom getresgid getresuid getuid sysinfo uname
    """,
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on the lower 32 bits of one argument of a call."""

    argument: int
    values: tuple[int, ...] = ()  # one of them, unless empty
    refused_bits: tuple[int, ...] = ()  # masks; refused if all bits of one are set


CONDITIONS = {
    # linux/sched.h: no new namespaces (CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET)
    "clone": Condition(0, refused_bits=(0x20000, *(1 << bit for bit in range(25, 31)))),
    # F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, DUPFD_CLOEXEC, GETPIPE_SZ: without
    # F_SETPIPE_SZ a pipe holds 64 KiB
    "fcntl": Condition(1, values=(*range(8), 1030, 1032)),
    # TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: no TIOCSTI
    "ioctl": Condition(1, values=(0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # MAP_SHARED | MAP_ANONYMOUS: all its pages persist while any part is mapped. MAP_HUGETLB: a
    # pool of the whole machine.
    "mmap": Condition(3, refused_bits=(0x01 | 0x20, 0x40000)),
    # PR_SET_PDEATHSIG, GET_PDEATHSIG, GET_DUMPABLE, SET_NAME, GET_NAME, CAPBSET_READ,
    # SET_NO_NEW_PRIVS, GET_NO_NEW_PRIVS
    "prctl": Condition(0, values=(1, 2, 3, 15, 16, 23, 38, 39)),
    "socketpair": Condition(0, values=(1,)),  # AF_UNIX; asyncio needs one
}
UNAVAILABLE = ("clone3",)  # a filter cannot read its flags; the C library falls back to clone

# linux/bpf_common.h, linux/seccomp.h
LOAD, AND, RETURN = 0x20, 0x54, 0x06
IF_EQUAL, IF_ABOVE, IF_AT_LEAST = 0x15, 0x25, 0x35
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data

Instruction = tuple[int, int, int, int]  # code, number to skip if true, if false, operand
PASS: Instruction = (RETURN, 0, 0, ALLOW)
REFUSE: Instruction = (RETURN, 0, 0, ERRNO | errno.EPERM)
UNKNOWN: Instruction = (RETURN, 0, 0, ERRNO | errno.ENOSYS)


def call_numbers(machine: str) -> dict[str, int]:
    """The numbers of a machine's system calls in the table."""
    table = json.loads(NUMBERS.read_text(encoding="utf-8"))
    place = table["architectures"].index(machine)
    return {
        name: numbers[place]
        for name, numbers in table["numbers"].items()
        if numbers[place] is not None
    }


def allowed_calls() -> set[str]:
    """The names of all allowed calls, with any arguments."""
    return {name for names in ALLOWED.values() for name in names.split()}


def call_filter(machine: str, *, also: Iterable[str] = ()) -> bytes:
    """The filter for a machine (`x86_64`, `aarch64`), as an array of struct sock_filter.

    Args:
      machine: as in `os.uname().machine`.
      also: further calls to allow, for tests of the other limits.
    """
    known = call_numbers(machine)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (IF_EQUAL, 1, 0, ARCHITECTURES[machine]),  # x86_64 also runs calls of i386
        REFUSE,
        (LOAD, 0, 0, NUMBER_AT),
    ]
    for name in UNAVAILABLE:
        program += [(IF_EQUAL, 0, 1, known[name]), UNKNOWN]
    for name, condition in CONDITIONS.items():
        test = _test(condition)
        program += [(IF_EQUAL, 0, len(test), known[name]), *test]
    allowed = sorted(known[name] for name in allowed_calls() | {*also} if name in known)
    for first, last in _ranges(allowed):  # ascending: lower numbers are decided
        program += [(IF_AT_LEAST, 1, 0, first), REFUSE, (IF_ABOVE, 1, 0, last), PASS]
    program += [(IF_ABOVE, 1, 0, max(known.values())), REFUSE, UNKNOWN]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _test(condition: Condition) -> list[Instruction]:
    """Instructions that allow or refuse a call by its argument, with no other exit."""
    load = (LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument)  # its lower half: little-endian
    if condition.values:
        count = len(condition.values)
        tests = [(IF_EQUAL, count - i, 0, value) for i, value in enumerate(condition.values)]
        return [load, *tests, REFUSE, PASS]
    tests = []
    for bits in condition.refused_bits:
        tests += [load, (AND, 0, 0, bits), (IF_EQUAL, 0, 1, bits), REFUSE]
    return [*tests, PASS]


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each range of consecutive numbers, ascending."""
    runs = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
