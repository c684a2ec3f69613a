"""Starts a program in Linux namespaces of its own; run as a script, it imports nothing of ours.

    python -I -S isolation.py REQUEST

    caller ── guard      this script: kills what is below at the wall limit, then reports
                └── init      process 1 of the new namespaces; when it ends, all below it end
                      └── program     an ordinary user's, without any capability

The program sees an empty network (not even loopback is up), only its own processes, the folders
of the interpreter and the system's libraries, read-only, and one folder of its own, in memory.
It has a user number that is not root's outside either, which root needs for limits to bind it.

REQUEST is JSON: `report` (a file descriptor), `wall_s`, `folder` (the program's, inside) and
`folder_bytes`, `visible` (path inside -> path outside, without symbolic links) and `command`. The
report is `exit CODE` (128 + signal where one ended the program) or `timeout`; anything else says
why the sandbox could not be set up. Needs Linux 5.14, where a limit on processes counts those of
the user namespace alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping

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
# linux/prctl.h, linux/seccomp.h, linux/audit.h
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_ERRNO = 2, 0x7FFF0000, 0x00050000
FIRST_X32_CALL = 0x40000000  # x86_64's second set of numbers
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FORBIDDEN = {  # system call -> its number on x86_64 and aarch64; what namespaces and limits miss
    "socket": (41, 198),  # some families, such as vsock, have no namespace
    "io_uring_setup": (425, 425),  # opens sockets too
    "memfd_create": (319, 279),  # memory that no limit of a process counts
    "shmget": (29, 194),  # likewise
    "add_key": (248, 217),  # the caller's session keys are inherited
    "request_key": (249, 218),
    "keyctl": (250, 219),
}

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


def bind(source: str, target: str) -> None:
    """Shows a file or folder at another place, too."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, None, MS_BIND | MS_REC)


def enter_root(visible: Mapping[str, str], folder: str, folder_bytes: int) -> None:
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
    for device in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        bind("/host" + device, "/inside" + device)
        restrict("/inside" + device, NO_SETUID, recursive=True)
    os.symlink(folder, "/inside/dev/shm")  # for the locks of multiprocessing
    os.mkdir("/inside" + folder)
    own = f"size={folder_bytes},mode=700,uid={NOBODY},gid={NOBODY}"
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


def forbid_calls() -> None:
    """Makes the system calls of `FORBIDDEN` fail with EPERM, from here on and in all children."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(f"cannot filter system calls on {machine}, only on {[*ARCHITECTURES]}")
    numbers = [number[list(ARCHITECTURES).index(machine)] for number in FORBIDDEN.values()]
    load, jump_if_equal, jump_if_at_least, leave = 0x20, 0x15, 0x35, 0x06
    tests = [(jump_if_at_least, FIRST_X32_CALL), *((jump_if_equal, n) for n in numbers)]
    # An instruction: code, how many to skip if true, if false, operand. The last one refuses.
    instructions = [(load, 0, 0, 4), (jump_if_equal, 0, len(tests) + 2, ARCHITECTURES[machine])]
    instructions += [(load, 0, 0, 0)]
    instructions += [
        (code, len(tests) - place, 0, operand) for place, (code, operand) in enumerate(tests)
    ]
    instructions += [(leave, 0, 0, SECCOMP_ALLOW), (leave, 0, 0, SECCOMP_ERRNO | errno.EPERM)]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = FilterProgram(len(instructions), packed)
    result = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    check(result, "filter system calls")


def run_init(request: dict, *, was_root: bool) -> int:
    """Process 1: prepares the sandbox, runs the program in it, and gives its exit code."""
    os.umask(0o022)  # the program is somebody else, and has to read what is made here
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, the kernel takes the sandbox first
    enter_root(request["visible"], request["folder"], request["folder_bytes"])
    drop_rights(was_root=was_root)
    forbid_calls()
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execv(request["command"][0], request["command"])
    while True:  # orphans of the program are ours
        process, status = os.wait()
        if process == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    """The guard."""
    request = json.loads(sys.argv[1])
    report = request["report"]
    os.set_inheritable(report, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    was_root = os.geteuid() == 0
    try:
        enter_namespaces()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        init = os.fork()
    except OSError as error:
        os.write(report, f"{error}\n".encode())
        return
    if init == 0:
        code = 1
        try:
            code = run_init(request, was_root=was_root)
        except OSError as error:
            os.write(report, f"{error}\n".encode())
        finally:
            os._exit(code)
    if signal.sigtimedwait([signal.SIGCHLD], request["wall_s"]) is None:
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
        os.write(report, b"timeout")
        return
    _, status = os.waitpid(init, 0)
    code = os.waitstatus_to_exitcode(status)
    os.write(report, f"exit {code if code >= 0 else 128 - code}".encode())


if __name__ == "__main__":
    main()
