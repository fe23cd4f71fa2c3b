"""Progress on the standard error, in a terminal and in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from conftest import ROOT

CODE = """
from sfp.progress import progress

with progress(total=2, desc="outer", unit="cell") as bar:
    for place in range(2):
        for _ in progress(range(100), desc="inner", leave=False):
            pass
        bar.write(f"done: {place}")
        bar.update()
"""
COMMAND = [sys.executable, "-c", CODE]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_log_has_plain_lines():
    done = subprocess.run(COMMAND, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert not set(done.stderr) & set("\r\x1b\b")
    assert [line.split("[")[0].strip() for line in lines] == [
        "outer:   0% 0/2",
        "inner:   0% 0/100",
        "inner:   0% 0/100",
        "outer: 100% 2/2",
    ]
    assert done.stdout == "done: 0\ndone: 1\n"


def test_a_terminal_has_bars():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen(COMMAND, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=theirs):
        os.close(theirs)
        written = b""
        try:
            while some := os.read(ours, 4096):
                written += some
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert b"\r" in written and b"outer: 100%|" in written
