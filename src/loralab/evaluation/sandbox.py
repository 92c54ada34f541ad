"""Run a program that a model wrote, away from what it could harm by accident.

Each program is a fresh ``python -I -S`` (no site-packages, no user's settings) in an
empty temporary directory, with an empty environment, in a session of its own that is
killed at the time limit, under limits of CPU time, address space, file size, open files
and processes. Where the kernel permits it (Linux user namespaces, util-linux's
``unshare``), it also has its own network namespace, in which there is no network, and
its own process namespace, so that nothing it started outlives it. Everywhere an audit
hook (PEP 578) refuses sockets, processes, threads, signals to others, ``ctypes`` and
changes to files outside the directory.

It passed only if a number that this process drew came back, and the child writes it
after the last line of the program ran: leaving early, however cleanly, is no pass.

What this does not protect from. It is a fence against accidents, not a prison for an
enemy: an audit hook lives in the process it watches, and a program that sets out to can
get around it. Files that you may read, it may read (keys in a home directory too; it
has no way to send them where namespaces work). A bug of the kernel or of Python is
open to it. Without namespaces a program that gets around the hook reaches the network,
and may leave processes behind. For root the kernel does not count processes, and many
files within their limit can fill a disk. And a program that means to cheat shares its
process with its tests: it can find the number, or change what the tests call. To run
programs you distrust, use a virtual machine that holds nothing you would miss.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from shutil import which

from loralab.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What a program may use; macOS keeps the limits of time and file size only.

    Attributes:
        seconds: Of wall time, and (rounded up) of CPU time.
        memory_mb: Address space, MiB.
        file_mb: Size of any file it writes, MiB.
        files: Open files.
        processes: Of this user in all (root is exempt); one is the program itself.
    """

    seconds: float = 3.0
    memory_mb: int = 512
    file_mb: int = 16
    files: int = 64
    processes: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `reason` is ``passed``, ``timed out``, or what it raised."""

    passed: bool
    reason: str


# Runs in the child: reads its job, limits itself, hides the channel, runs the program.
_CHILD = r"""
import json, math, os, sys

job = json.load(sys.stdin)

def limit():
    import resource
    size = 1 << 20
    cpu = math.ceil(job["seconds"])
    for name, soft, hard in (
        ("CPU", cpu, cpu + 1),
        ("AS", job["memory_mb"] * size, job["memory_mb"] * size),
        ("FSIZE", job["file_mb"] * size, job["file_mb"] * size),
        ("NOFILE", job["files"], job["files"]),
        ("NPROC", job["processes"], job["processes"]),
        ("CORE", 0, 0),
    ):
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (soft, hard))
        except (AttributeError, ValueError, OSError):
            if name in ("CPU", "FSIZE"):
                raise

def guard():
    home = os.path.realpath(os.getcwd())
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    devnull = os.path.realpath(os.devnull)
    refused = ("socket.", "subprocess.", "ctypes.", "pty.", "_posixsubprocess.")
    named = {
        "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
        "os.kill", "os.killpg", "os.chroot", "signal.pthread_kill", "sys.addaudithook",
    }
    changes = {
        "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename",
        "os.rmdir", "os.symlink", "os.truncate", "os.utime", "os.chflags",
        "os.setxattr", "os.removexattr", "os.chdir",
    }
    real, inside, decode = os.path.realpath, home + os.sep, os.fsdecode
    is_directory = os.path.isdir

    def within(path):
        if isinstance(path, int):
            return True
        path = real(decode(path))
        return path == home or path.startswith(inside) or path == devnull

    def hook(event, args):
        if event.startswith(refused) or event in named:
            raise PermissionError("the sandbox refuses " + event)
        # a directory that is open is a way round: paths may be relative to it
        if event == "open" and not within(args[0]):
            if args[2] & writes or is_directory(args[0]):
                raise PermissionError("the sandbox refuses opening it")
        if event in changes:
            for path in args[:2]:
                if isinstance(path, (str, bytes)) and not within(path):
                    raise PermissionError("the sandbox refuses " + event)

    def no_threads(*args, **kwargs):
        raise PermissionError("the sandbox refuses threads")

    import _thread  # which has no event before Python 3.13
    _thread.start_new_thread = _thread.start_joinable_thread = no_threads
    sys.addaudithook(hook)

def run():
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    leave, write = os._exit, os.write
    nonce = job.pop("nonce").encode()
    source = job.pop("program")
    limit()
    guard()
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "program"})
        write(answer, nonce)
    except BaseException as error:
        write(answer, type(error).__name__[:80].encode("utf-8", "replace"))
    finally:
        leave(0)

run()
"""


@cache
def namespaces() -> tuple[str, ...]:
    """Return the command that gives a program namespaces of its own, or nothing.

    Empty where the kernel or the machine does not permit it.
    """
    unshare = which("unshare")
    if unshare is None:
        return ()
    own = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork"]
    command = (unshare, *own, "--kill-child", "--")
    tried = subprocess.run(
        [*command, sys.executable, "-I", "-S", "-c", ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        check=False,
    )
    return command if tried.returncode == 0 else ()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_program(source: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program in the sandbox; it passes if it runs to its end.

    Args:
        source: Its text; a failed ``assert`` or any exception is no pass.
        limits: What it may use.

    Raises:
        ConfigError: the machine has no POSIX resource limits (Windows).
    """
    if sys.platform == "win32":
        raise ConfigError(
            "programs can be run on Linux and macOS only",
            why="the sandbox stands on POSIX resource limits and process groups",
        )
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    job = {"program": source, "nonce": nonce, **asdict(limits)}
    command = [*namespaces(), sys.executable, "-I", "-S", "-B", "-X", "utf8"]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as answer,
    ):
        asked.write(json.dumps(job).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [*command, "-c", _CHILD],
            stdin=asked,
            stdout=answer,  # a file, so that its size is limited too
            stderr=subprocess.DEVNULL,
            cwd=place,
            env={},
            start_new_session=True,
        )
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            _kill(process)
        answer.seek(0)
        said = answer.read(200).decode("utf-8", "replace")
    if said == nonce:
        return Outcome(True, "passed")
    return Outcome(False, said or "died")
