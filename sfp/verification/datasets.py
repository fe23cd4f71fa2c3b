"""The datasets that are prepared, and measuring a method on one of them or on a share of it.

Counts of finished images stay in the report's folder, so that an interrupted measurement goes on
and a larger share only adds images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from sfp.errors import SFPError
from sfp.evaluation.config import CONFIGS, build_model, check_dataset, read_config
from sfp.evaluation.counts import CountStore, Figures
from sfp.evaluation.dataset import build_dataset, check_task, image_names
from sfp.evaluation.loop import Part, evaluate
from sfp.evaluation.metric import check_metric
from sfp.evaluation.provenance import run_provenance, write_results
from sfp.evaluation.tables import collect
from sfp.files import only_one
from sfp.options import split_spec
from sfp.verification.session import Session

_ORDER = ("voc21", "ade20k", "voc20", "context59", "coco_object", "context60", "city_scapes")
_FIRST = 8  # images, after which the time that the others take is known
_SHIFTED = 24  # images whose labels are looked at for a shift
_ROUNDS = 400  # of the bootstrap
_TWICE = 2.0  # a shift explains labels if so many times more pixels agree
_READERS = 8  # processes that read images for a GPU
_MANY = 64  # images that are worth processes of their own to read them


@dataclass(frozen=True)
class Measured:
    """A method on a dataset.

    Attributes:
        mIoU: in percent.
        counts: of each measured image, (n, 3, K) int64.
        names: their short names.
        images: how many the dataset has.
        agree: share of pixels that agree with the labels as they are, and one lower and higher.
        differs: what in the protocol is not the paper's.
    """

    mIoU: float
    counts: np.ndarray
    names: tuple[str, ...]
    images: int
    agree: dict[int, float]
    differs: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return len(self.names) == self.images

    @property
    def share(self) -> str:
        if self.whole:
            return f"all {self.images} images"
        return f"{len(self.names)} of {self.images} images"


def prepared_configs(session: Session) -> tuple[dict[str, Config], dict[str, str]]:
    """Configs of the datasets that are here, by name, the most telling first; and of the others
    why not.
    """
    names = sorted(path.stem.removeprefix("cfg_") for path in CONFIGS.glob("cfg_*.py"))
    names = [name for name in names if name != "toyland"]
    asked = [name for name in names if not session.given.datasets or name in session.given.datasets]
    found, missing = {}, {}
    for name in sorted(asked, key=lambda name: (name not in _ORDER, _rank(name), name)):
        try:
            cfg = read_config(CONFIGS / f"cfg_{name}.py", root_option(session, name))
            check_dataset(cfg)
            found[name] = cfg
        except SFPError as error:
            missing[name] = str(error)
    return found, missing


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def root_option(session: Session, dataset: str) -> list[str]:
    """``--data-root`` of a dataset as an override."""
    folder = session.given.data_roots.get(dataset)
    return [f"test_dataloader.dataset.data_root={folder}"] if folder else []


def weights_options(session: Session) -> list[str]:
    """The session's weights and device as overrides."""
    model = dict(
        clip=session.model, pretrained=session.pretrained, device=session.device,
        **session.given.weights,
    )  # fmt: skip
    return [f"model.{key}={value}" for key, value in model.items()]


def config_of(dataset: str, method: str, overrides: Sequence[str]) -> Config:
    """The config of a method, ``NAME:KEY=VALUE,...``, on a dataset.

    Raises:
        SFPError: what ``read_config`` refuses.
    """
    name, options = split_spec(method)
    given = [f"model.method={name}", *(f"model.{option}" for option in options)]
    return read_config(CONFIGS / f"cfg_{dataset}.py", [*given, *overrides])


def measure(
    cfg: Config, folder: Path, limit: int | None = None, seconds: float = float("inf")
) -> Measured:
    """A config's method on so many images of its dataset, or as many as there is time for.

    Args:
        folder: keeps the counts, and ``results.json`` of what was measured.
        limit: at most so many images, spread over the dataset; all if None.
        seconds: at most so long, but at least eight images.

    Raises:
        SFPError: wrong data, options or weights; labels that are no classes, with a shift that
            would explain them.
    """
    started = time.monotonic()
    dataset = build_dataset(cfg)
    check_metric(cfg, dataset)
    model = build_model(cfg)
    check_task(model.vocabulary, model.task.protocol, dataset)
    part, seen = Part(dataset, model.task), Shift()
    order = [part.chosen[i] for i in spread_order(len(part.chosen))][:limit]
    with only_one(folder, "--out"):
        provenance = run_provenance(cfg, model, part)
        store = CountStore(folder / "counts", provenance)
        _resume(part, store)
        try:
            _evaluate(model, part, order, seen, started, seconds)
        finally:
            store.close()
        names = tuple(name for name in order if name in part.counts)
        part.chosen, part.counts = list(names), {name: part.counts[name] for name in names}
        path = folder / "results.json"
        spent = time.monotonic() - started
        write_results(path, cfg, model, part, part.figures(), provenance, spent)
    (entry,) = collect([folder])
    counts = np.stack([part.counts[name] for name in names])
    images = len(image_names(dataset))
    return Measured(entry.measured, counts, names, images, seen.shares(), entry.differs)


def _resume(part: Part, store: CountStore) -> None:
    """Go on with an earlier run's counts, unless they are of other settings."""
    try:
        part.resume(store)
    except SFPError:
        store.clear()
        part.resume(store)


def _evaluate(
    model: Any, part: Part, order: list[str], seen: Shift, started: float, seconds: float
) -> None:
    done, last = 0, None
    on_gpu = model.pipeline.device.type == "cuda"
    todo = [name for name in order if name not in part.counts]
    while todo[done:]:
        if last is None:
            count = _FIRST
        else:
            left = seconds - (time.monotonic() - started)
            count = len(todo) if left == float("inf") else int(left / last)
        if count < 1:
            return
        some = todo[done : done + count]
        part.chosen = [*part.counts, *some]
        begun = time.monotonic()
        readers = min(_READERS, max(2, (os.cpu_count() or 2) // 2)) if on_gpu else 2
        options = dict(batch_size=8 if on_gpu else 1, workers=readers if len(some) > _MANY else 0)
        try:
            evaluate(model, [part], after_image=seen, bar=len(some) > _MANY, **options)
        except SFPError as error:
            shift = seen.words()
            shift = f" Labels shifted by one? {shift}." if shift else ""
            raise SFPError(f"{error}{shift}") from error
        last = max(1e-3, (time.monotonic() - begun) / len(some))
        done += len(some)


def spread_order(count: int) -> list[int]:
    """The numbers below ``count`` in an order whose every beginning is spread over all of them."""
    bits = max(1, (count - 1).bit_length())
    turned = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in turned if i < count]


class Shift:
    """Whether labels agree better with their neighbours' numbers; called with each image."""

    def __init__(self):
        self.images = 0
        self.pixels = 0
        self.agree = {-1: 0, 0: 0, 1: 0}

    def __call__(self, part: Part, item: dict, labels: torch.Tensor) -> None:
        if self.images >= _SHIFTED:
            return
        truth = item["data_samples"].gt_sem_seg.data[0].long()
        kept = truth != part.dataset.ignore_index
        labels = labels.to(truth.device).long()
        for shift in self.agree:
            self.agree[shift] += int((labels == truth + shift)[kept].sum())
        self.pixels += int(kept.sum())
        self.images += 1

    def shares(self) -> dict[int, float]:
        return {shift: own / max(1, self.pixels) for shift, own in self.agree.items()}

    def words(self) -> str:
        return shift_words(self.shares())


def shift_words(agree: dict[int, float]) -> str:
    """A shift that explains the labels, in words; empty where none does."""
    best = max((-1, 1), key=lambda shift: agree[shift])
    if agree[best] < 0.2 or agree[best] < _TWICE * agree[0]:
        return ""
    way = "higher" if best > 0 else "lower"
    return (
        f"{100 * agree[best]:.0f}% of pixels would be right if the labels were one {way}, and"
        f" {100 * agree[0]:.0f}% are as they are"
    )


def interval(counts: np.ndarray, seed: int = 0) -> float:
    """Half the 95% interval of mIoU over such images, in percent: by drawing them with
    replacement.
    """
    n, flat = len(counts), counts.reshape(len(counts), -1).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _ROUNDS)
    totals = (drawn @ flat).reshape(_ROUNDS, *counts.shape[1:])
    low, high = np.percentile([miou(total) for total in totals], [2.5, 97.5])
    return float(high - low) / 2


def paired_interval(here: np.ndarray, there: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the difference of two mIoUs over the same images."""
    n = len(here)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _ROUNDS)
    off = []
    for row in drawn:
        totals = [np.tensordot(row, own, 1) for own in (here, there)]
        off.append(miou(totals[0]) - miou(totals[1]))
    return tuple(float(value) for value in np.percentile(off, [2.5, 97.5]))


def miou(total: np.ndarray) -> float:
    """mIoU in percent of summed counts (3, K)."""
    return Figures.of(np.asarray(total)).mIoU
