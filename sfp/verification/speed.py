"""Step e: how fast methods are beside open_clip's forward, and how much memory they need."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sfp.api import Segmenter
from sfp.clip.clip import PRECISIONS, FrozenCLIP
from sfp.methods import build_method
from sfp.verification.agreement import names_of
from sfp.verification.findings import Finding, impossible, passed
from sfp.verification.pictures import batch_of_windows
from sfp.verification.session import Session
from sfp.verification.timing import in_rounds, peak_memory, spread, wait

_METHODS = ("CLIP", "ClearCLIP", "SC-CLIP", "SFP")
_PLAIN = "open_clip"
_ROUNDS = {"cpu": 3, "cuda": 10}
_WINDOWS = {"cpu": 2, "cuda": 64}
_PICTURES = {"cpu": 2, "cuda": 50}


def run(session: Session) -> None:
    methods = [name for name in _METHODS if name in session.methods] or session.methods[:1]
    kind = torch.device(session.device).type
    precision = "fp32" if kind == "cpu" else "fp16"
    where = f"{session.device} {precision}"
    session.check(
        "e", f"over open_clip, {where}", lambda: forward(session, methods, precision, kind)
    )
    for name in methods:
        session.check(
            "e", f"{name}, pictures, {where}", lambda name=name: pictures(session, name, precision)
        )
    session.check("e", "host waits a picture", lambda: waits(session, methods, precision))


def forward(session: Session, methods: list[str], precision: str, kind: str) -> Finding:
    """Methods beside open_clip's own forward of the same windows, in interleaved rounds."""
    clip = session.clip(session.device, precision)
    pixels, count = session.photograph.pixels, _WINDOWS.get(kind, 8)
    windows = batch_of_windows(clip, pixels, 2).repeat(count // 2, 1, 1, 1).to(clip.device)
    calls = {name: partial(build_method(name, clip), windows) for name in methods}
    calls[_PLAIN] = plain_forward(session, clip, windows)
    seconds = in_rounds(calls, _ROUNDS.get(kind, 3), clip.device)
    figures: dict[str, Any] = {}
    for name in methods:
        figures[name] = {
            **spread(seconds[name], seconds[_PLAIN]),
            "windows_per_s": count / statistics.median(seconds[name]),
            "peak_mib": peak_memory(calls[name], clip.device),
        }
    shown = ", ".join(f"{name} {own['ratio']:.2f}" for name, own in figures.items())
    rate = figures[methods[-1]]["windows_per_s"]
    words = f"time over open_clip's: {shown}; {methods[-1]} {rate:.0f} windows/s"
    return passed(words, windows=count, **figures)


def plain_forward(session: Session, clip: FrozenCLIP, windows: torch.Tensor) -> Callable[[], Any]:
    """open_clip's own forward in the same precision, which has a network of its own: in half
    precision ours keeps its norms in float32, which open_clip's forward doesn't take.
    """
    if clip.precision == "fp32":
        network = clip.model
    else:
        from sfp.clip import load_clip

        options = dict(device=session.device, precision="fp32", **session.given.weights)
        network = load_clip(session.model, session.pretrained, **options).model
        network = network.to(PRECISIONS[clip.precision])
    inputs = windows.to(PRECISIONS[clip.precision])

    @torch.inference_mode()
    def call() -> Any:
        return network.encode_image(inputs)

    return call


def pictures(session: Session, name: str, precision: str) -> Finding:
    """Whole pictures, read, cut into windows and labelled, one after the other."""
    clip = session.clip(session.device, precision)
    segmenter = Segmenter(name, clip, prompts="photo")
    count = _PICTURES.get(clip.device.type, 2)
    picture, names = session.photograph.pixels, names_of(session)

    def call(count: int) -> None:
        for _ in segmenter.many([picture] * count, names, keep_scores=False):
            pass

    call(1)
    wait(clip.device)
    started = time.perf_counter()
    call(count)
    wait(clip.device)
    rate = count / (time.perf_counter() - started)
    peak = peak_memory(partial(call, 1), clip.device)
    height, width = picture.shape[:2]
    size = f"{width}x{height} pixels, {len(names)} names"
    shown = "" if peak is None else f", {peak:.0f} MiB besides the weights"
    return passed(f"{rate:.2f} pictures/s ({size}){shown}", pictures_per_s=rate, peak_mib=peak)


def waits(session: Session, methods: list[str], precision: str) -> Finding:
    """How often a picture makes the processor wait for the GPU, by torch's own warnings."""
    if torch.device(session.device).type != "cuda":
        return impossible("no GPU")
    clip = session.clip(session.device, precision)
    found, where = {}, {}
    for name in methods:
        segmenter = Segmenter(name, clip, prompts="photo")
        picture, names = session.photograph.pixels, names_of(session)
        segmenter(picture, names, keep_scores=False)  # text vectors, kernels
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                segmenter(picture, names, keep_scores=False)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        own = [one for one in warned if "synchroniz" in str(one.message)]
        found[name] = len(own)
        where[name] = sorted({f"{one.filename.rpartition('sfp/')[2]}:{one.lineno}" for one in own})
    shown = ", ".join(f"{name} {count}" for name, count in found.items())
    return passed(f"{shown} (one copy of the labels is the aim)", waits=found, places=where)
