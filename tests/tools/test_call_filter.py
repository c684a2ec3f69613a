import errno
import re
import struct
from pathlib import Path

import pytest

from rmas_jax.tools.call_filter import (
    ALLOWED,
    ARCHITECTURES,
    CONDITIONS,
    allowed_calls,
    call_filter,
    call_numbers,
)

ALLOW = 0x7FFF0000
LOAD, AND, RETURN, IF_EQUAL, IF_ABOVE, IF_AT_LEAST = 0x20, 0x54, 0x06, 0x15, 0x25, 0x35
TESTS = {IF_EQUAL: int.__eq__, IF_ABOVE: int.__gt__, IF_AT_LEAST: int.__ge__}


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None):
    """The filter's verdict on a call, as the kernel would read it: None or the error's name."""
    if architecture is None:
        architecture = ARCHITECTURES[machine]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, architecture, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", call_filter(machine)))
    place = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == RETURN:
            return None if operand == ALLOW else errno.errorcode[operand & 0xFFFF]
        if code == LOAD:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif code == AND:
            accumulator &= operand
        else:
            place += if_true if TESTS[code](accumulator, operand) else if_false


@pytest.fixture(params=ARCHITECTURES)
def machine(request):
    return request.param


def test_each_known_call_passes_if_it_is_listed_and_fails_if_not(machine):
    for name, number in call_numbers(machine).items():
        if name not in CONDITIONS:
            expected = None if name in allowed_calls() else "EPERM"
            assert verdict(machine, number) == ("ENOSYS" if name == "clone3" else expected), name


def test_a_number_without_a_name_fails_and_a_new_one_is_not_there(machine):
    numbers = call_numbers(machine)
    unnamed = {*range(max(numbers.values()))} - {*numbers.values()}
    assert len(unnamed) > 50
    assert {verdict(machine, number) for number in unnamed} == {"EPERM"}
    for number in (451, 600, 0x40000000, 0x40000000 + numbers["read"], 0x7FFFFFFF):
        assert verdict(machine, number) == "ENOSYS"  # the 4th is x86_64's second set, x32
    assert verdict(machine, -1) == "ENOSYS"


def test_calls_of_another_architecture_fail(machine):
    read = call_numbers(machine)["read"]
    assert verdict(machine, read) is None
    assert verdict(machine, read, architecture=0x40000003) == "EPERM"  # i386


SIGCHLD = 17
THREAD = 0x3D0F00  # the flags of pthread_create
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_HUGETLB = 1, 2, 0x10, 0x20, 0x40000


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (SIGCHLD,), None),
        ("clone", (THREAD,), None),
        *[("clone", (SIGCHLD | 1 << bit,), "EPERM") for bit in (17, *range(25, 31))],
        ("mmap", (0, 1, 3, MAP_PRIVATE | MAP_ANONYMOUS), None),
        ("mmap", (0, 1, 3, MAP_SHARED), None),
        ("mmap", (0, 1, 3, MAP_PRIVATE | MAP_FIXED), None),
        ("mmap", (0, 1, 3, MAP_SHARED | MAP_ANONYMOUS), "EPERM"),
        ("mmap", (0, 1, 3, MAP_SHARED | MAP_ANONYMOUS | 1 << 32), "EPERM"),
        ("mmap", (0, 1, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB), "EPERM"),
        ("fcntl", (1, 6), None),  # F_SETLK: sqlite
        ("fcntl", (1, 1030), None),  # F_DUPFD_CLOEXEC
        ("fcntl", (1, 1031), "EPERM"),  # F_SETPIPE_SZ
        ("fcntl", (1, 1024), "EPERM"),  # F_SETLEASE
        ("fcntl", (1, 1 << 32 | 1031), "EPERM"),
        ("ioctl", (1, 0x5401), None),  # TCGETS
        ("ioctl", (1, 0x5412), "EPERM"),  # TIOCSTI
        ("prctl", (15,), None),  # PR_SET_NAME
        ("prctl", (22,), "EPERM"),  # PR_SET_SECCOMP
        ("socketpair", (1,), None),
        ("socketpair", (30,), "EPERM"),  # AF_TIPC
    ],
)
def test_some_calls_pass_by_their_arguments(machine, name, arguments, expected):
    assert verdict(machine, call_numbers(machine)[name], *arguments) == expected


@pytest.mark.parametrize(
    "names",
    [
        "semget semop semctl semtimedop shmget shmat shmctl msgget msgsnd msgctl",
        "mq_open mq_timedsend memfd_create memfd_secret userfaultfd splice tee vmsplice sendfile",
        "io_uring_setup io_setup inotify_init1 fanotify_init add_key request_key keyctl",
        "socket bind connect listen accept4 sendmsg sendmmsg recvmsg setsockopt",
        "unshare setns mount umount2 pivot_root chroot fsopen move_mount mount_setattr open_tree",
        "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise",
        "bpf perf_event_open seccomp personality open_by_handle_at quotactl swapon reboot",
        "kexec_load init_module finit_module acct settimeofday clock_settime lookup_dcookie syslog",
        "mlock mlockall remap_file_pages set_mempolicy sched_setaffinity setuid setgroups capset",
    ],
)
def test_what_must_fail_fails(machine, names):
    numbers = call_numbers(machine)
    for name in names.split():
        assert verdict(machine, numbers[name]) == "EPERM", name


def test_each_listed_call_exists_and_is_listed_once():
    names = [name for group in ALLOWED.values() for name in group.split()]
    known = {*call_numbers("x86_64"), *call_numbers("aarch64")}
    assert {*names} <= known and {*CONDITIONS} <= known
    assert len(names) == len({*names}) and not {*names} & {*CONDITIONS}


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernel_headers(machine, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"there is no {path}")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)$"
    found = dict(re.findall(pattern, path.read_text(), re.MULTILINE))
    found["newfstatat"] = found.get("newfstatat", found.get("fstatat"))
    found = {name: int(number) for name, number in found.items() if number}
    numbers = call_numbers(machine)
    common = numbers.keys() & found.keys()
    assert len(common) > 280
    assert {name: numbers[name] for name in common} == {name: found[name] for name in common}
