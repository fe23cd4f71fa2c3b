"""Step d: what is computed is what the papers print, on every device and in every precision.

First without our own code as the judge: resizes in NumPy, open_clip's forward, formulas. Then each
method on one picture: windows one by one beside batches, and each device and precision beside the
CPU's float32. Where labels part, the first place where the features do is named.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch

from sfp.api import Segmenter
from sfp.clip.trunk import Hook, LayerState
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.result import Segmentation
from sfp.stages import View
from sfp.verification.findings import Finding, impossible, judged, passed
from sfp.verification.formulas import FORMULAS, formula
from sfp.verification.geometry import resizes
from sfp.verification.reference import against_open_clip, relative
from sfp.verification.session import REFERENCE, Place, Session

_AGREE = {"fp32": 99.9, "bf16": 99.0, "fp16": 99.0}  # percent of labels
_LAYERS = {"fp32": 1e-3, "bf16": 0.15, "fp16": 0.02}  # of tokens beside their length: no rounding
_TIE = 0.05  # difference of the best two probabilities
_TOKENS = 0.02  # share of outliers that rounding at a detector's edge may move


def run(session: Session) -> None:
    session.check("d", "resizes", resizes)
    picture = session.photograph
    depends = dict(picture=hashlib.sha256(picture.pixels.tobytes()).hexdigest())
    devices = dict.fromkeys(["cpu", session.device])
    for device in devices:
        on = f"open_clip's forward, {device}"
        session.check("d", on, lambda device=device: against_open_clip(session, device), **depends)
    for name in [name for name in FORMULAS if name in session.methods]:
        session.check("d", f"{name}'s formula", lambda name=name: formula(session, name), **depends)
    groups: dict[str, dict[str, Callable[[], Finding]]] = {}
    for name in session.methods:
        labelled = Labelled(session, name)
        groups[name] = {f"{name}, window by window": labelled.one_by_one}
        for place in session.places:
            groups[name][f"{name}, {' '.join(place)}"] = partial(labelled.compare, place)
    session.check_groups("d", groups, "methods without time", 1 / 3, **depends)


def names_of(session: Session) -> list[str]:
    """The words that the picture of this step is segmented by."""
    words = session.photograph.words
    return list(toyland.CLASSES) if set(words) <= set(toyland.CLASSES) else list(words)


class Labelled:
    """A method's labels of the session's picture on the CPU in float32, made when asked for."""

    def __init__(self, session: Session, name: str):
        self.session, self.name = session, name
        self.options = dict(TOYLAND_OPTIONS.get(name, {}))  # plain colours for DINO and SAM

    def _built(self, place: Place) -> Segmenter:
        # FLOSS's ranking is of all eighty
        prompts = "imagenet80" if "ranking" in self.options else "photo"
        return Segmenter(self.name, self.session.clip(*place), prompts=prompts, **self.options)

    def _labels(self, segmenter: Segmenter) -> Segmentation:
        return segmenter(self.session.photograph.pixels, names_of(self.session))

    @cached_property
    def segmenter(self) -> Segmenter:
        return self._built(REFERENCE)

    @cached_property
    def expected(self) -> Segmentation | str:
        """The reference, or why these weights have none."""
        try:
            return self._labels(self.segmenter)
        except SFPError as error:
            return str(error)

    def one_by_one(self) -> Finding:
        """Each window in a batch of its own beside batches of several."""
        if isinstance(self.expected, str):
            return impossible(self.expected)
        alone = self._built(REFERENCE)
        alone.pipeline.windows_at_once = 1
        found = self._labels(alone)
        return self._judged(found, alone, "fp32", "those of a batch of several")

    def compare(self, place: Place) -> Finding:
        """A device and a precision beside the CPU's float32."""
        if isinstance(self.expected, str):
            return impossible(self.expected)
        other = self._built(place)
        found = self._labels(other)
        coloured = "colour" in str(self.options)
        stand_ins = " (colours for its second model)" if coloured else ""
        return self._judged(found, other, place[1], f"the CPU's in fp32{stand_ins}")

    def _judged(self, found: Segmentation, other: Segmenter, precision: str, whose: str) -> Finding:
        agree = agreement(found.labels, self.expected.labels)
        words, wanted = f"{agree:.2f}% of labels are {whose}", _AGREE[precision]
        if agree >= wanted:
            return passed(words, agree=agree)
        ties = self._ties(found.labels)
        where, layers_agree = self._parting(other, precision)
        only_ties = layers_agree and ties >= _AGREE["bf16"]
        words += f", {wanted:g} are wanted: {where}; {ties:.0f}% of the rest are near ties"
        return judged(only_ties, words, agree=agree, near_ties=ties)

    def _ties(self, labels: np.ndarray) -> float:
        """Percent of the pixels that differ whose best two probabilities were close."""
        differ = labels != self.expected.labels
        best = np.sort(self.expected.scores, axis=0)[-2:]
        return 100 * float((best[1] - best[0] < _TIE)[differ].mean()) if differ.any() else 0.0

    def _parting(self, other: Segmenter, precision: str) -> tuple[str, bool]:
        """Where the features first part from the CPU's in float32, and whether only labels do."""
        here, there = stream_of(other, self.session), stream_of(self.segmenter, self.session)
        return first_parting(here, there, _LAYERS[precision])


def agreement(here: np.ndarray, there: np.ndarray) -> float:
    """Percent of equal labels."""
    return 100 * float((here == there).mean())


class Stream:
    """What hooks saw of a picture's windows, on the CPU in float32: by layer the tokens as the
    block made them and after repair, and the outliers; then what the method made of it.
    """

    def __init__(self):
        self.layers: dict[int, dict[str, list[torch.Tensor]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.features: dict[str, torch.Tensor] = {}

    def keep(self, state: LayerState) -> None:
        own = self.layers[state.layer]
        own["tokens"].append(state.unrepaired.float().cpu())
        own["repaired"].append(state.tokens.float().cpu())
        if state.outliers is not None:
            own["outliers"].append(state.outliers.cpu())

    def take(self, view: View) -> None:
        self.features = {
            name: value.float().cpu()
            for name, value in view.encoded.items()
            if value.is_floating_point()
        }


def stream_of(segmenter: Segmenter, session: Session) -> Stream:
    """What a segmenter's method makes of the session's picture, layer by layer."""
    method, found = segmenter.pipeline.method, Stream()
    hook = Hook(found.keep, range(1, method.trunk.layers + 1))
    method.observers.append(hook)
    try:
        picture = segmenter._read(session.photograph.pixels)
        (view,) = segmenter.pipeline.views([picture])
    finally:
        method.observers.remove(hook)
    found.take(view)
    return found


def first_parting(here: Stream, there: Stream, limit: float) -> tuple[str, bool]:
    """The first layer whose tokens or outliers part, else the stage after the layers; and whether
    layers and features agree.
    """
    steps: list[Callable[[int], str | None]] = [
        lambda layer: _tokens(here, there, layer, "tokens", limit),
        lambda layer: _outliers(here, there, layer),
        lambda layer: _tokens(here, there, layer, "repaired", limit),
    ]
    for layer in sorted(here.layers.keys() & there.layers.keys()):
        for step in steps:
            if words := step(layer):
                return words, False
    off = {
        name: relative(value, there.features[name])
        for name, value in here.features.items()
        if name in there.features and value.shape == there.features[name].shape
    }
    worst = max(off, key=off.get, default=None)
    if worst is not None and off[worst] > limit:
        return f"the layers agree, the method's own {worst} part by {off[worst]:.2g}", False
    shown = f" (by {off[worst]:.2g})" if worst is not None else ""
    return f"layers and features agree{shown}", True


def _joined(stream: Stream, layer: int, name: str) -> torch.Tensor | None:
    parts = stream.layers[layer].get(name)
    return torch.cat(parts) if parts else None


def _tokens(here: Stream, there: Stream, layer: int, name: str, limit: float) -> str | None:
    own, other = _joined(here, layer, name), _joined(there, layer, name)
    if own is None or other is None or own.shape != other.shape:
        return None
    off = float((own - other).norm() / other.norm().clamp(min=1e-12))
    after = "after its repair" if name == "repaired" else "as it made them"
    return f"first in block {layer}'s tokens {after}, by {off:.2g}" if off > limit else None


def _outliers(here: Stream, there: Stream, layer: int) -> str | None:
    own, other = _joined(here, layer, "outliers"), _joined(there, layer, "outliers")
    if own is None or other is None or own.shape != other.shape:
        return None
    moved, all_ = int((own != other).sum()), int(other.sum())
    if moved <= _TOKENS * max(all_, 50):
        return None
    return f"first in block {layer}'s outliers, {moved} of {other.numel()} tokens ({all_} outliers)"
