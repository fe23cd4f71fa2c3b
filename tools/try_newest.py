"""Install other releases of the dependencies than the pinned ones, run a quick part of the tests with them, and write what came out.

python tools/try_newest.py --sets newest beyond oldest --out releases.json

The sets: ``newest`` that setup.py allows, the newest ``beyond`` its bounds, and the ``oldest``, each lower bound to the digit. Each gets
a virtual environment of its own, which is deleted afterwards. Beside the JSON lies a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from sfp.errors import run_command
from sfp.files import whole_file
from sfp.markdown import markdown_table

ROOT = Path(__file__).parent.parent
SETS = ("newest", "beyond", "oldest")
TESTS = [
    "tests/test_api.py", "tests/test_images.py", "tests/test_result.py", "tests/clip/test_kernels.py", "tests/clip/test_loading.py",
    "tests/clip/test_text_bank.py", "tests/pipeline/test_pipeline.py", "tests/methods/test_parity.py",
]  # fmt: skip
SHOWN = ("torch", "numpy", "open_clip_torch")  # first in the table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="what to try")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what to run")
    parser.add_argument("--index", help="a further package index, such as PyTorch's with builds for the CPU")
    parser.add_argument("--minutes", type=float, default=30, help="for each set, installing included")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the table goes beside it, as .md")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(try_sets, parser.parse_args())


def try_sets(args: argparse.Namespace) -> None:
    """Try each set and write both files after each.

    Raises:
        SFPError: the files can't be written.
    """
    outcomes = []
    for name in args.sets:
        outcomes.append({"set": name, "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), **try_set(name, args)})
        print(f"{name}: {outcomes[-1]['outcome']}")
        with whole_file(args.out, "give --out a file in a folder that exists") as partial:
            partial.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
        with whole_file(args.out.with_suffix(".md"), "give --out a file in a folder that exists") as partial:
            partial.write_text(table(outcomes), encoding="utf-8")


def try_set(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What came of one set: ``outcome`` in words, ``versions``, and the ``tests`` that passed, failed and were skipped."""
    ends = time.monotonic() + 60 * args.minutes
    index = ["--extra-index-url", args.index] if args.index else []
    with tempfile.TemporaryDirectory(prefix="sfp-releases-") as folder:
        python = f"{folder}/bin/python"
        _run([sys.executable, "-m", "venv", folder], ends)
        log, code = _run([python, "-m", "pip", "install", "--no-input", *index, *wanted(name), "pytest", "hypothesis"], ends)
        if code:
            lines = [line for line in log.splitlines() if line.startswith("ERROR")] or ["it took too long" if code < 0 else log[-200:]]
            return {"outcome": f"can't be installed: {lines[0].removeprefix('ERROR: ')}", "versions": {}, "tests": {}}
        listed, _ = _run([python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"], ends)
        found = json.loads(next(line for line in listed.splitlines() if line.startswith("[")))
        kept = {_plain(requirement.name) for requirement in requirements()}
        versions = {entry["name"]: entry["version"] for entry in found if _plain(entry["name"]) in kept}
        report = Path(folder) / "report.xml"
        log, code = _run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *args.tests], ends)
        if not report.is_file():
            return {"outcome": f"the tests did not end: {log.strip()[-300:]}", "versions": versions, "tests": {}}
        return {"versions": versions, **_counted(report, args.tests)}


def requirements() -> list[Requirement]:
    """What setup.py says of the package itself and of its extra for mmsegmentation."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    lists = re.findall(r"(?:install_requires=|MMSEG = )\[(.*?)\]", text, re.S)
    return [Requirement(line) for block in lists for line in re.findall(r'"([^"]+)"', block)]


def wanted(name: str) -> list[str]:
    """What pip is asked for."""
    if name == "newest":
        return [str(requirement) for requirement in requirements()]
    if name == "beyond":
        return [requirement.name for requirement in requirements()]
    lowest = {r.name: next((s.version for s in r.specifier if s.operator == ">="), None) for r in requirements()}
    return [f"{r.name}=={lowest[r.name]}" if lowest[r.name] else str(r) for r in requirements()]


def table(outcomes: list[dict[str, Any]]) -> str:
    """The outcomes as a Markdown table."""
    rows = []
    for outcome in outcomes:
        versions = {_plain(name): version for name, version in outcome["versions"].items()}
        first = [versions.get(_plain(name), "") for name in SHOWN]
        others = ", ".join(f"{n} {v}" for n, v in versions.items() if n not in map(_plain, SHOWN))
        rows.append([outcome["set"], outcome["date"], outcome["python"], *first, others, outcome["outcome"]])
    return markdown_table(["set", "date", "Python", *SHOWN, "others", "outcome"], rows)


def _counted(report: Path, tests: list[str]) -> dict[str, Any]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    count["passed"] = count.pop("tests") - sum(count.values())
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    outcome = f"{count['passed']} tests passed, {len(bad)} failed, {count['skipped']} skipped"
    return {"outcome": outcome, "tests": {**count, "run": tests, "failed": bad}}


def _run(command: list[str], ends: float) -> tuple[str, int]:
    """Output and exit code of a command; -1 where its time was up."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1, ends - time.monotonic()),
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), -1
    return done.stdout, done.returncode


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
