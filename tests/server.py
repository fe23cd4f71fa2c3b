"""The server of ``forked.py``: ``python tests/server.py FOLDER``.

It answers at two sockets in the folder. A program asked for at ``library`` starts with the
libraries imported that ours and mmsegmentation use, one asked for at ``all`` with those two as
well. Nothing is imported before the first is asked for. It ends when its standard input does,
which is with the process that started it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path

LIBRARIES = [
    "torch",
    "torchvision",
    "open_clip",
    "transformers",
    "matplotlib.figure",
    "scipy.ndimage",
]


def main() -> None:
    folder = Path(sys.argv[1])
    library, everything = (listen(folder / name) for name in ("library", "all"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends who started this, and so this
    wait(library, everything)
    for name in LIBRARIES:
        importlib.import_module(name)
    assert not {"sfp", "mmengine", "mmcv", "mmseg"} & sys.modules.keys()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who keeps a program
    if os.fork():
        everything.close()
        serve(library)
    library.close()
    wait(everything)
    import_ours()
    serve(everything)


def listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(64)
    return made


def wait(*sockets: socket.socket) -> None:
    """Until one is asked; ends this process when its standard input ends."""
    ready, _, _ = select.select([*sockets, 0], [], [])
    if 0 in ready:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        os._exit(0)


def import_ours() -> None:
    for name in ("sfp.api", "sfp.segmentor"):
        importlib.import_module(name)
    from sfp.errors import SFPError
    from sfp.plugin import require_mmseg

    with contextlib.suppress(SFPError):  # without mmsegmentation, its tests are skipped
        require_mmseg()


def serve(asked: socket.socket) -> None:
    gc.freeze()  # what is imported is no garbage
    while True:
        wait(asked)
        connection, _ = asked.accept()
        if not os.fork():
            asked.close()
            keep(Connection(connection.detach()))
        connection.close()


def keep(connection: Connection) -> None:
    """Start a program, tell its number and, when it has ended, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = multiprocessing.get_context("fork").Process(target=be, args=connection.recv())
    process.start()
    connection.send(process.pid)
    process.join()
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        connection.send(process.exitcode)
    os._exit(0)


def be(
    command: list[str], cwd: str, environment: dict[str, str], files: list[str], method: str
) -> None:
    """Be the program: in the forked process."""
    os.setsid()
    multiprocessing.set_start_method(method, force=True)
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


if __name__ == "__main__":
    main()
