"""Findings of ``sfp verify``, and ``verify.json``, which keeps them from run to run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfp.files import whole_file

OK, FAILED, IMPOSSIBLE, LEFT_OUT = "ok", "FAILED", "not possible here", "left out"
FILE = "verify.json"


@dataclass(frozen=True)
class Finding:
    """What a part of a step found.

    Attributes:
        verdict: one of ``OK``, ``FAILED``, ``IMPOSSIBLE``, ``LEFT_OUT``.
        words: one line for people.
        figures: what it was found by, plain values.
    """

    verdict: str
    words: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def passed(words: str, **figures: Any) -> Finding:
    return Finding(OK, words, figures)


def failed(words: str, **figures: Any) -> Finding:
    return Finding(FAILED, words, figures)


def impossible(words: str, **figures: Any) -> Finding:
    return Finding(IMPOSSIBLE, words, figures)


def judged(good: bool, words: str, **figures: Any) -> Finding:
    return Finding(OK if good else FAILED, words, figures)


@dataclass(frozen=True)
class Part:
    """A finding with its place.

    Attributes:
        step: its letter.
        name: of the part within the step.
        finding: what was found.
        key: digest of all that the finding depends on; a part of the same key isn't done again.
        common: digest of what all parts depend on: weights, device, versions, code.
        seconds: that it took.
        kept: whether it was found by an earlier run.
    """

    step: str
    name: str
    finding: Finding
    key: str
    common: str
    seconds: float
    kept: bool = False


class Record:
    """The parts found so far, written to ``verify.json`` after each.

    Args:
        folder: where it lies.
        fresh: forget what an earlier run found.
    """

    def __init__(self, folder: Path, fresh: bool = False):
        self.path = folder / FILE
        self.about: dict[str, Any] = {}
        self.parts: list[Part] = []
        self._earlier = {} if fresh else self._read()

    def _read(self) -> dict[tuple[str, str], Part]:
        """The parts of an earlier run; none where the file is missing, cut or of another make."""
        try:
            found = [
                Part(**{**part, "finding": Finding(**part["finding"]), "kept": True})
                for part in json.loads(self.path.read_bytes())["parts"]
            ]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return {(part.step, part.name): part for part in found}

    def earlier(self, step: str, name: str, key: str) -> Part | None:
        """What an earlier run found of a part, if all that it depends on is as it was.

        What was not possible or left out is tried again.
        """
        part = self._earlier.get((step, name))
        same = part is not None and part.key == key
        return part if same and part.finding.verdict in (OK, FAILED) else None

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self._earlier.pop((part.step, part.name), None)
        self.write()

    def take_over(self, common: str, steps: Iterable[str]) -> None:
        """Keep an earlier run's parts of steps that this one does not do, of the same machine,
        weights and code; what is left of the others is stale.
        """
        own = set(steps)
        kept = [p for p in self._earlier.values() if p.step not in own and p.common == common]
        self.parts = sorted([*self.parts, *kept], key=lambda part: part.step)
        self._earlier = {}
        self.write()

    def write(self) -> None:
        """Raises SFPError where the file can't be written."""
        waiting = [part for part in self._earlier.values()]
        parts = [asdict(part) for part in [*self.parts, *waiting]]
        for part in parts:
            del part["kept"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with whole_file(self.path) as partial:
            text = json.dumps({**self.about, "written": now, "parts": parts}, indent=1, default=str)
            partial.write_text(text + "\n", encoding="utf-8")


def verdict_of(parts: Iterable[Part]) -> Finding:
    """A step's verdict: that of its worst part, and how many there are of each kind."""
    kinds: dict[str, list[Part]] = {kind: [] for kind in (FAILED, OK, LEFT_OUT, IMPOSSIBLE)}
    for part in parts:
        kinds[part.finding.verdict].append(part)
    first = next((kind for kind, own in kinds.items() if own), IMPOSSIBLE)
    counted = [f"{len(own)} {kind}" for kind, own in kinds.items() if own]
    worst = kinds[first][0] if kinds[first] else None
    if worst is None:
        return Finding(first, "nothing was asked for")
    if first == OK:
        return Finding(first, ", ".join(counted))
    return Finding(first, f"{', '.join(counted)}; {worst.name}: {worst.finding.words}")
