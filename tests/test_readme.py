"""Every Python block and every command of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
# what these need is not on a test machine; they must say so in one sentence
NEED_DATA = [command for command in COMMANDS if "voc2" in command or "cfg_ade" in command]
SELF = ["sh scripts/run_tests.sh"]
SERVES = ["python -m sfp.page"]  # runs until it is stopped: test_page.py starts it


def run(command: list[str], cwd: Path, **environment) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The folders that the commands name, apart from the real checkout's; only the number of scenes is cut."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    with (folder / "configs/cfg_toyland.py").open("a") as config:
        config.write('test_dataloader["dataset"]["scenes"] = 5\n')
    for name in ("docs", "scripts", "sfp", "tools", "setup.py", "constraints.txt", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_commands_are_found():
    assert len(COMMANDS) >= 7 and NEED_DATA and {*SELF, *SERVES} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NEED_DATA + SELF + SERVES])
def test_command(command, checkout, tmp_path_factory):
    done = run(shlex.split(command), checkout, SFP_DATA=str(tmp_path_factory.getbasetemp() / "readme_data"))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


@pytest.mark.parametrize("command", NEED_DATA)
def test_command_that_needs_data(command, checkout, tmp_path):
    nowhere = ["--mirror", "http://127.0.0.1:9"] if "--download" in command else []  # where there is a network, nothing is fetched
    done = run([*shlex.split(command), *nowhere], checkout, SFP_DATA=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert any(f"error: {words}" in done.stderr for words in ("The data root", "There is no", "http://127.0.0.1:9")), done.stderr


def test_python_blocks(checkout):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        done = run([sys.executable, "-c", block], checkout)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (checkout / "overlay.png").is_file()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
