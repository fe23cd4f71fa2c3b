"""Step f: methods on the datasets that are here, beside the published numbers.

Toyland is always here: its figures come with this package, so that the whole way from a file to
mIoU is compared on any machine.
"""

from __future__ import annotations

import csv
import functools
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sfp.errors import SFPError
from sfp.evaluation.published import find_published
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.verification.findings import (
    LEFT_OUT,
    OK,
    Finding,
    failed,
    impossible,
    judged,
)
from sfp.verification.session import Session, allowance
from sfp.verification.weights import needs_download
from sfp.verification.weights import published as published_weights
from sfp.verification.weights import words as check_words

TOYLAND = Path(__file__).with_name("toyland_figures.csv")
SCENES = 6  # of Toyland, whose figures are in that file
BAND, READ_BAND = 0.35, 1.0  # mIoU: of methods with public code, and of those read from papers
READ = ("SFP", "CLIPSeg", "CLIP", "MaskCLIP", "CLIPSurgery", "GEM")  # no code says how
_LEAST = 45.0  # seconds that a cell is worth beginning for
_FEW = 20  # images, below which an interval says little
_PAPERS_KEY = {"city_scapes": "cityscapes"}


@dataclass(frozen=True)
class Published:
    """A number to compare with: mIoU in percent, where it stands, and how near one should come."""

    mIoU: float
    where: str
    band: float


def run(session: Session) -> None:
    if not session.has_mmseg("f"):
        return
    if "toyland" in (session.given.datasets or ("toyland",)):
        toyland(session)
    datasets(session)


def toyland(session: Session) -> None:
    """Each method on Toyland's first scenes beside the figures that come with this package."""
    known = {row["method"]: float(row["value"]) for row in rows_of(TOYLAND)}
    groups = {
        name: {f"{name}, Toyland": partial(_of_toyland, session, name, known[name])}
        for name in session.methods
        if name in known
    }
    session.check_groups("f", groups, "Toyland without time", 1 / 4, known=known)


def _of_toyland(session: Session, name: str, value: float) -> Finding:
    return measured_toyland(session, name, Published(value, "this package", BAND))


def measured_toyland(session: Session, name: str, number: Published | None) -> Finding:
    from sfp.verification.datasets import config_of, measure

    options = [f"model.{key}={value!r}" for key, value in TOYLAND_OPTIONS.get(name, {}).items()]
    root = session.given.out / "toyland"
    overrides = [
        *options,
        "model.clip=Toyland",
        "model.pretrained=toyland",
        f"model.device={session.device}",
        "model.precision=fp32",
        f"test_dataloader.dataset.data_root={root}",
        f"test_dataloader.dataset.scenes={SCENES}",
    ]
    cfg = config_of("toyland", name, overrides)
    found = measure(cfg, folder(session, name, "toyland"))
    return compared(session, replace(found, differs=()), number)  # the figures are of these scenes


def folder(session: Session, method: str, dataset: str) -> Path:
    """Where a cell's counts and results lie."""
    from sfp.evaluation.grid import Cell

    model = f"{session.model}:{Path(session.pretrained).name}"
    model = "Toyland" if dataset == "toyland" else model
    return Cell(method, model, dataset, (), str(session.given.out / "cells")).folder


# ------------------------------------------------------------------------------ real datasets


def datasets(session: Session) -> None:
    """The cells of the datasets that are prepared, the most telling first, as time allows."""
    from sfp.verification.datasets import prepared_configs

    found, missing = prepared_configs(session)
    if missing:
        why = next(iter(missing.values())).partition(";")[0]
        words = f"{', '.join(missing)}: {why}; give --data-root NAME=FOLDER, or SFP_DATA"
        session.check("f", "datasets that are not prepared", lambda: impossible(words))
    if not found:
        return
    cells = cells_of(session, list(found))
    if not cells:
        session.check("f", "published numbers", lambda: impossible(why_none(session)))
        return
    until = share_of_time(session)
    skipped: list[str] = []
    for place, (method, dataset, number) in enumerate(cells):
        name = f"{method}, {dataset}"
        depends = dict(
            images=session.given.images_each,
            minutes=session.given.minutes,
            root=str(found[dataset].test_dataloader.dataset.data_root),
            published=number.mIoU,
        )
        left = until - time.monotonic()
        begins = left > _LEAST or until == float("inf") or place == 0
        if not begins and not session.has("f", name, **depends):
            skipped.append(name)
            continue
        seconds = allowance(left, len(cells) - place, _LEAST)
        session.check(
            "f",
            name,
            lambda method=method, dataset=dataset, number=number, seconds=seconds: measured(
                session, method, dataset, number, seconds
            ),
            **depends,
        )
    if skipped:
        words = f"no time for {len(skipped)} cells: {', '.join(skipped)}"
        session.check("f", "cells without time", lambda: Finding(LEFT_OUT, words))


def share_of_time(session: Session) -> float:
    """When this step has to end: half of what is left, where step g comes too."""
    left = session.left()
    return time.monotonic() + (left / 2 if "g" in session.steps else left)


def cells_of(session: Session, names: Sequence[str]) -> list[tuple[str, str, Published]]:
    """Method, dataset and published number of each cell that has one."""
    found = []
    for rank, method in enumerate(session.methods):
        for place, dataset in enumerate(names):
            number = number_of(session, method, dataset)
            if number is not None:
                found.append((rank // 3, place, method, dataset, number))
    return [tuple(cell[2:]) for cell in sorted(found, key=lambda cell: cell[:2])]


def why_none(session: Session) -> str:
    if session.given.published:
        return f"{session.given.published.name} has no number of {session.model} on them"
    known = published_weights(session)
    if known is None:
        return "the weights are none that a paper measured; --published names other numbers"
    return f"no paper prints numbers of {known.title}; --published names other numbers"


def number_of(session: Session, method: str, dataset: str) -> Published | None:
    """The published number of a method on a dataset with the session's weights, if any."""
    key = _PAPERS_KEY.get(dataset, dataset)
    band = READ_BAND if method in READ else BAND
    if session.given.published:
        wanted = dict(method=method, dataset=key, metric="mIoU")
        for row in rows_of(session.given.published):
            fits = wanted.items() <= row.items()
            if fits and row.get("backbone", "") in ("", session.model, session.clip().name):
                where = f"{row.get('paper', '')} {row.get('table', '')}".strip()
                where = where or session.given.published.name
                return Published(float(row["value"]), where, band)
        return None
    known = published_weights(session)
    if known is None or known.tag != "openai":
        return None
    found = find_published(method, known.model, key)
    return found and Published(*found, band)


@functools.lru_cache(maxsize=4)
def rows_of(path: Path) -> tuple[dict[str, str], ...]:
    """The rows of a table of numbers, with columns as ``paper_results.csv``.

    Raises:
        SFPError: it can't be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = tuple(csv.DictReader(file))
        for row in rows:
            _ = row["method"], row["dataset"], row["metric"], float(row["value"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SFPError(
            f"The numbers {path} can't be read ({type(error).__name__}: {error}); give a .csv with"
            " the columns method, backbone, dataset, metric and value."
        ) from error
    return rows


def measured(
    session: Session, method: str, dataset: str, number: Published, seconds: float
) -> Finding:
    from sfp.verification.datasets import config_of, measure, root_option, weights_options

    overrides = [*weights_options(session), *root_option(session, dataset)]
    cfg = config_of(dataset, method, overrides)
    limit = session.given.images_each
    try:
        found = measure(cfg, folder(session, method, dataset), limit, seconds)
    except SFPError as error:
        if needs_download(error):
            return impossible(str(error))
        raise
    return compared(session, found, number)


def compared(session: Session, found, number: Published | None) -> Finding:
    """A measured mIoU beside the published one, and what may have gone wrong."""
    from sfp.verification.datasets import interval, shift_words

    shift = shift_words(found.agree)
    if shift:
        names_right = check_words(session).verdict == OK
        cause = "labels shifted by one (names and words agree)" if names_right else (
            "names shifted by one (the words' vectors are wrong, too)"
        )  # fmt: skip
        return failed(f"{found.mIoU:.2f} mIoU on {found.share}: {cause}: {shift}")
    figures = dict(mIoU=found.mIoU, images=len(found.names), of=found.images, agree=found.agree)
    if number is None:
        return Finding(OK, f"{found.mIoU:.2f} mIoU on {found.share}", figures)
    off, band = round(found.mIoU - number.mIoU, 4) + 0.0, number.band
    words = (
        f"{found.mIoU:.2f} mIoU on {found.share}, {number.mIoU:.2f} by {number.where}: {off:+.2f},"
        f" band {number.band:g}"
    )
    if not found.whole:
        half = interval(found.counts)
        band += half
        words += f" widened to {band:.2f} by a bootstrap of the share"
        if len(found.names) < _FEW:
            words += ", which so few images make little of"
    if found.differs:
        words += f"; differs: {textwrap.shorten(', '.join(found.differs), 160, placeholder=' ...')}"
    figures |= dict(published=number.mIoU, band=band, difference=off)
    if abs(off) > band:
        broken = [p.name for p in session.failures() if p.step in "bcd"]
        if broken:
            words += f"; look first at what failed before: {', '.join(broken[:3])}"
    return judged(abs(off) <= band, words, **figures)
