"""``verified.md``: what a verification found, as a page for docs/."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sfp
from sfp.evaluation.markdown import markdown_table
from sfp.files import whole_file
from sfp.verification import STEPS
from sfp.verification.findings import FAILED, OK, Part, Record, verdict_of
from sfp.verification.session import Session
from sfp.verification.timing import machine

FILE = "verified.md"


def about(session: Session, steps: Sequence[str]) -> dict[str, Any]:
    """What a report is of."""
    given = session.given
    return {
        "sfp": sfp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": session.device,
        "machine": machine(torch.device(session.device)),
        "model": session.model,
        "pretrained": Path(session.pretrained).name,
        "steps": list(steps),
        "minutes": given.minutes,
        "images_each": given.images_each,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_markdown(folder: Path, record: Record) -> Path:
    """Write the page; returns its path.

    Raises:
        SFPError: it can't be written.
    """
    path = folder / FILE
    with whole_file(path) as partial:
        partial.write_text(page(record.about, record.parts), encoding="utf-8")
    return path


def page(known: dict[str, Any], parts: Sequence[Part]) -> str:
    """The page: a line for each step, then all parts, then the tables that some of them have."""
    by_step = {letter: [p for p in parts if p.step == letter] for letter in STEPS}
    body = []
    for letter, (_, title) in STEPS.items():
        if not by_step[letter]:
            body.append([letter, title, "left out", "not asked for"])
            continue
        found = verdict_of(by_step[letter])
        body.append([letter, title, _bold(found.verdict), _cell(found.words)])
    minutes = sum(part.seconds for part in parts) / 60
    lines = [
        "# Verified",
        "",
        f"`sfp verify`, {known['started'][:10]}: {known['model']} with the weights"
        f" `{known['pretrained']}`, on {known['machine']} ({known['device']}), torch"
        f" {known['torch']}, Python {known['python']}, sfp {known['sfp']}; {minutes:.1f} minutes"
        " of measuring.",
        "",
        markdown_table(["step", "what", "verdict", "in one line"], body),
        "## Parts",
        "",
    ]
    rows = [
        [
            part.step,
            part.name,
            _bold(part.finding.verdict),
            _cell(part.finding.words),
            f"{part.seconds:.1f}",
        ]
        for part in parts
    ]
    lines.append(markdown_table(["step", "part", "verdict", "found", "#seconds"], rows))
    for part in parts:
        if table := part.finding.figures.get("table"):
            lines += [f"## {part.name}", "", markdown_table(table["head"], table["body"])]
    return "\n".join(lines)


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict == FAILED else verdict if verdict == OK else f"*{verdict}*"


def _cell(words: str) -> str:
    """Words of a table's cell, files without the folders of the machine."""
    words = re.sub(r"(?<![\w.:/])~?/(?:[\w.+@-]+/)+([\w.+@-]+)", r"\1", words)
    return words.replace("|", "\\|").replace("\n", " ")
