"""One run of ``sfp verify``: what was given, the models, the time that is left, the findings."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import sfp
from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN
from sfp.clip.clip import FrozenCLIP
from sfp.clip.loading import weights_file
from sfp.clip.prompts import PROMPT_SETS
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.files import file_sha256
from sfp.methods import list_methods
from sfp.plugin import require_mmseg
from sfp.verification.findings import (
    FAILED,
    LEFT_OUT,
    OK,
    Finding,
    Part,
    Record,
    failed,
    impossible,
)
from sfp.verification.given import Given
from sfp.verification.pictures import Photograph

Place = tuple[str, str]  # a device and a precision
REFERENCE: Place = ("cpu", "fp32")
_FIRST = (
    "ClearCLIP",
    "SFP",
    "SC-CLIP",
    "SCLIP",
    "NACLIP",
    "SFP-release",
    "ResCLIP",
    "CLIPSeg",
    "CLIP",
)


@dataclass
class Session:
    """A run.

    Attributes:
        given: the command line.
        record: the findings.
        steps: the letters of those that this run does.
        model, pretrained: the weights that are checked: those given, or Toyland's where nothing
            was given and the default ones can't be had.
        why_toyland: why the default weights can't be had, None where they can.
    """

    given: Given
    record: Record
    steps: Sequence[str] = ()
    model: str = ""
    pretrained: str = ""
    why_toyland: str | None = None
    started: float = field(default_factory=time.monotonic)
    _clips: dict[Place, FrozenCLIP] = field(default_factory=dict)

    def __post_init__(self):
        self.model = self.given.model or "ViT-B/16"
        self.pretrained = self.given.pretrained or "openai"
        if self.given.model is None and self.given.pretrained is None:
            try:
                self.clip()
            except SFPError as error:
                self.why_toyland = str(error)
                self.model, self.pretrained = "Toyland", "toyland"

    # ------------------------------------------------------------------ models
    def clip(self, device: str = "cpu", precision: str = "fp32") -> FrozenCLIP:
        """The CLIP that is checked, on a device in a precision; loaded once.

        Raises:
            SFPError: what ``load_clip`` refuses.
        """
        place = (device, precision)
        if place not in self._clips:
            self._clips[place] = load_clip(
                self.model,
                self.pretrained,
                device=device,
                precision=precision,
                **self.given.weights,
            )
        return self._clips[place]

    @property
    def is_toyland(self) -> bool:
        return self.model in BUILT_IN

    @cached_property
    def device(self) -> str:
        """Where the heavy work is done: what was given, else CUDA where there is one."""
        return self.given.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def places(self) -> list[Place]:
        """Devices and precisions that are compared with the CPU's fp32."""
        found = [("cpu", precision) for precision in self.given.cpu_precisions]
        if self.device != "cpu":
            found += [(self.device, precision) for precision in self.given.precisions]
        return [place for place in found if place != REFERENCE]

    @cached_property
    def methods(self) -> list[str]:
        """Those that were given, else all, the most telling first."""
        every = [name for name in list_methods() if name not in _FIRST]
        return list(self.given.methods or (*_FIRST, *every))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a run has one session
    def text(self, names: tuple[str, ...], prompts: str = "photo") -> torch.Tensor:
        """Unit vectors of names (Q, D) on the CPU."""
        return TextBank(self.clip(), PROMPT_SETS[prompts]).encode(names)

    # ------------------------------------------------------------------ time
    def left(self) -> float:
        """Seconds of ``--minutes`` that are left."""
        if self.given.minutes is None:
            return float("inf")
        return self.started + 60 * self.given.minutes - time.monotonic()

    # ------------------------------------------------------------------ parts
    @cached_property
    def common(self) -> str:
        """Digest of what every part depends on: weights, device, versions, this package's code."""
        try:
            self.clip()  # fetched now, so that the next run finds the file that this one had
            file = weights_file(self.model, self.pretrained)
        except SFPError:  # told in step b
            file = None
        gpu = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else None
        of_weights = [self.model, self.pretrained, file and file_sha256(file), self.given.weights]
        return _digest(of_weights, self.device, gpu, torch.__version__, sfp.__version__, _code())

    def check(
        self,
        step: str,
        name: str,
        find: Callable[[], Finding],
        **depends: Any,
    ) -> Finding:
        """Do a part of a step, unless an earlier run did it or there is no time left; show it.

        An error of the part is its finding, and the next part goes on.

        Args:
            find: does it.
            depends: what its finding depends on besides the session's own.
        """
        key = self._key(step, name, depends)
        earlier = self.record.earlier(step, name, key)
        if earlier is not None:
            self.record.add(earlier)
            self.show(earlier)
            return earlier.finding
        started = time.monotonic()
        if self.left() <= 0:
            words = f"no time left of {self.given.minutes:g} minutes"
            finding = Finding(LEFT_OUT, words)
        else:
            finding = self._found(find)
        seconds = round(time.monotonic() - started, 2)
        part = Part(step, name, finding, key, self.common, seconds)
        self.record.add(part)
        self.show(part)
        return finding

    def has_mmseg(self, step: str) -> bool:
        """Whether mmsegmentation is here; a part of the step says so where it is not."""
        try:
            require_mmseg()
        except SFPError as error:
            words = str(error)
            self.check(step, "mmsegmentation", lambda: impossible(words))
            return False
        return True

    def check_groups(
        self,
        step: str,
        groups: Mapping[str, Mapping[str, Callable[[], Finding]]],
        without: str,
        share: float,
        **depends: Any,
    ) -> None:
        """Do groups of parts while a share of the time that is left lasts, so that a step does not
        take the time of those after it; what an earlier run did is always taken.

        Args:
            groups: the parts of each by their names.
            without: names the part that lists the groups that are left out.
        """
        until, skipped = time.monotonic() + share * self.left(), []
        for name, parts in groups.items():
            known = all(self.has(step, part, **depends) for part in parts)
            if time.monotonic() >= until and not known:
                skipped.append(name)
                continue
            for part, find in parts.items():
                self.check(step, part, find, **depends)
        if skipped:
            words = f"no time left of {self.given.minutes:g} minutes for {', '.join(skipped)}"
            self.check(step, without, lambda: Finding(LEFT_OUT, words))

    def has(self, step: str, name: str, **depends: Any) -> bool:
        """Whether an earlier run did a part, so that ``check`` takes no time."""
        return self.record.earlier(step, name, self._key(step, name, depends)) is not None

    def _key(self, step: str, name: str, depends: Mapping[str, Any]) -> str:
        return _digest(self.common, step, name, depends)

    def _found(self, find: Callable[[], Finding]) -> Finding:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                finding = find()
            except Exception as error:
                if self.given.debug:
                    raise
                lines = str(error).strip().splitlines() or [""]
                words = str(error) if isinstance(error, SFPError) else ""
                words = words or f"{type(error).__name__}: {lines[0][:200]}"
                finding = failed(words, traceback=traceback.format_exc())
        own = {str(one.message) for one in warned if issubclass(one.category, UserWarning)}
        if own:
            return Finding(finding.verdict, finding.words, {**finding.figures, "warned": [*own]})
        return finding

    def show(self, part: Part) -> None:
        """One line on the terminal."""
        finding = part.finding
        mark = finding.verdict if finding.verdict != OK or not part.kept else "ok (kept)"
        line = f"  {part.step}  {part.name:<34} {mark:<18} {finding.words}"
        print(line, file=sys.stdout, flush=True)

    def failures(self) -> Iterator[Part]:
        return (part for part in self.record.parts if part.finding.verdict == FAILED)

    # ------------------------------------------------------------------ pictures
    @cached_property
    def photograph(self) -> Photograph:
        """The picture of the steps that need one: the first that was given, else one that ships."""
        from sfp.verification.pictures import photographs, toyland_scene

        if self.is_toyland and not self.given.images:
            return toyland_scene(0)
        return next(iter(photographs(self.given.images)), None) or toyland_scene(0)


def allowance(left: float, cells: int, least: float) -> float:
    """Seconds for the next of so many measurements, none of which is worth less than ``least``."""
    if left == float("inf"):
        return left
    return left / max(1, min(cells, int(left / least)))


def _digest(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    """SHA-256 of this package's Python files."""
    digest = hashlib.sha256()
    package = Path(sfp.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
