"""Programs in processes of their own, which have their imports done.

A fresh interpreter takes 5 to 9 seconds for torch, mmsegmentation and what they import. Here one
server (``server.py``) for the whole test run imports them once, and forks itself for each program,
which runs from its first line on as any other: in its own folder and environment, and to be killed.
What a fresh interpreter does by itself is tested by tests/test_commands.py and test_readme.py.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

ROOT = Path(__file__).parent.parent
_SERVER = "SFP_TEST_SERVER"  # ROOT:FOLDER, whose code it has imported and where it answers


@functools.cache
def start_server() -> subprocess.Popen | None:
    """Start the server for this process and those below it, which find it by the environment."""
    if os.environ.get(_SERVER, "").startswith(f"{ROOT}{os.pathsep}"):
        return None
    folder = tempfile.mkdtemp()
    os.environ[_SERVER] = f"{ROOT}{os.pathsep}{folder}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/server.py"), folder]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE)


class Program:
    """A running program, as ``subprocess.Popen`` has it.

    Args:
        command: what follows ``python``: a file and its arguments, or ``-m`` or ``-c``.
        cwd: its folder.
        environment: all of its environment.
        imported: "all", or "library" for a program that is to import sfp and mmsegmentation itself.
    """

    def __init__(
        self, *command: object, cwd: Path, environment: Mapping[str, str], imported: str = "all"
    ):
        self._told = tempfile.TemporaryDirectory()
        self._files = [f"{self._told.name}/{name}" for name in ("out", "err")]
        method = multiprocessing.get_start_method()
        self._command = list(map(str, command))
        given = [self._command, str(cwd), dict(environment), self._files, method]
        self._server = _connect(imported)
        self._server.send(given)
        self.pid = self._server.recv()
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self, timeout: float | None = 0) -> int | None:
        """Its exit code if it ends within the time."""
        if self._code is None and self._server.poll(timeout):
            self._code = self._server.recv()
        return self._code

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
        if self.poll(timeout) is None:
            self.kill()
            raise TimeoutExpired(self._command, timeout)
        return self.written()

    def written(self) -> tuple[str, str]:
        """What it has written so far: its output and its errors."""
        out, err = (Path(file).read_text() if Path(file).exists() else "" for file in self._files)
        return out, err


def run(
    *command: object,
    cwd: Path,
    environment: Mapping[str, str],
    imported: str = "all",
    timeout: float = 240,
) -> CompletedProcess:
    """Run a program to its end."""
    program = Program(*command, cwd=cwd, environment=environment, imported=imported)
    out, err = program.communicate(timeout)
    return CompletedProcess(command, program.returncode, out, err)


def _connect(imported: str) -> Connection:
    start_server()
    folder = os.environ[_SERVER].rpartition(os.pathsep)[2]
    end = time.monotonic() + 20
    while True:
        try:
            return Client(f"{folder}/{imported}")
        except (FileNotFoundError, ConnectionRefusedError):  # it has just been started
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
