"""Programs in processes of their own, which have torch and mmsegmentation imported already.

A fresh interpreter takes 5 to 9 seconds for these imports. Here one server (multiprocessing's) for
each test process takes them once, and forks itself for each program, which runs from its first line
on as any other: in its own folder and environment, and to be killed. What a fresh interpreter does
by itself is tested by tests/test_commands.py, test_readme.py and test_plugin.py.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

import pytest

ROOT = Path(__file__).parent.parent


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(ROOT)
        forkserver.ensure_running()
    return context


class Program:
    """A running program, as ``subprocess.Popen`` has it.

    Args:
        command: what follows ``python``: a file and its arguments, or ``-m`` or ``-c``.
        cwd: its folder.
        environment: all of its environment.
    """

    def __init__(self, *command: object, cwd: Path, environment: Mapping[str, str]):
        self._told = tempfile.TemporaryDirectory()
        self._files = [f"{self._told.name}/{name}" for name in ("out", "err")]
        method = multiprocessing.get_start_method()
        given = [list(map(str, command)), str(cwd), dict(environment), self._files, method]
        self._process = _server().Process(target=_be, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it had written when it ended.

        Raises:
            TimeoutExpired: it runs still.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutExpired(str(self._process), timeout)
        return self.written()

    def written(self) -> tuple[str, str]:
        """What it has written so far: its output and its errors."""
        out, err = (Path(file).read_text() if Path(file).exists() else "" for file in self._files)
        return out, err


def run(
    *command: object, cwd: Path, environment: Mapping[str, str], timeout: float = 240
) -> CompletedProcess:
    """Run a program to its end."""
    program = Program(*command, cwd=cwd, environment=environment)
    out, err = program.communicate(timeout)
    return CompletedProcess(command, program.returncode, out, err)


def _be(
    command: list[str], cwd: str, environment: dict[str, str], files: list[str], method: str
) -> None:
    """Be the program: in the forked process."""
    os.setsid()
    multiprocessing.set_start_method(method, force=True)  # a server's child has the server's
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "-c", "exec"), {"__name__": "__main__"})
    elif command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
