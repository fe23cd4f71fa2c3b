"""A grid of evaluations: methods x backbones x datasets.

Datasets that share their images share one pass of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset

from sfp.errors import SFPError
from sfp.evaluation.config import (
    CONFIGS,
    build_model,
    method_options,
    read_config,
    read_protocol,
    read_vocabulary,
)
from sfp.evaluation.counts import CountStore
from sfp.evaluation.dataset import build_dataset, check_task
from sfp.evaluation.loop import Part, evaluate
from sfp.evaluation.metric import check_metric
from sfp.evaluation.provenance import (
    dataset_fingerprint,
    finished_as,
    run_provenance,
    write_results,
)
from sfp.evaluation.tables import read_results
from sfp.files import make_folder, only_one, sweep, whole_file
from sfp.methods import METHODS, check_method
from sfp.options import split_spec
from sfp.pipeline import Task

# of a model's config: what may differ between cells that share a pass
_OF_THE_TEXT = (
    "name_path", "names", "name_separator", "logit_scale", "sigmoid", "prob_thd", "area_thd",
    "refine", "pamr_iterations", "pamr_dilations",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        method: a method's name, or ``NAME:KEY=VALUE,KEY=VALUE`` with options of its own.
        backbone: a model's name, or ``NAME:TAG`` with the tag or path of other weights than
            OpenAI's.
        dataset: the name of ``configs/cfg_<dataset>.py``.
        overrides: further ``KEY=VALUE`` for the config.
        out: folder of the whole grid.
    """

    method: str
    backbone: str
    dataset: str
    overrides: tuple[str, ...]
    out: str

    @property
    def folder(self) -> Path:
        """Where its ``results.json`` goes."""
        return Path(
            self.out,
            *(
                re.sub(r"[^\w.=,@+-]+", "-", part)
                for part in (self.method, self.backbone, self.dataset)
            ),
        )

    def __str__(self) -> str:
        return f"{self.method} / {self.backbone} / {self.dataset}"

    def config(self):
        """The cell's config.

        Raises:
            SFPError: no such dataset, or a wrong option.
        """
        if not self.backbone.partition(":")[0]:
            raise SFPError(
                f"The backbone is {self.backbone!r}; give NAME or NAME:TAG, such as ViT-B/16."
            )
        name, options = split_spec(self.method)
        METHODS.get(name)
        clip, _, pretrained = self.backbone.partition(":")
        pretrained = pretrained or "openai"
        given = [f"model.method={name}", f"model.clip={clip}", f"model.pretrained={pretrained}"]
        given += [f"model.{option}" for option in options]
        cfg = read_config(CONFIGS / f"cfg_{self.dataset}.py", [*given, *self.overrides])
        check_method(name, method_options(cfg.model))
        read_protocol(cfg.model)
        return cfg

    def is_finished(self, cfg: Config, dataset_sha256: str) -> bool:
        """Whether its results are there, of this config, dataset, weights and code."""
        path = self.folder / "results.json"
        if not path.is_file():
            return False
        try:
            result = read_results(path, dict)
        except SFPError:  # cut or damaged: measured again and written over
            return False
        now = finished_as(cfg, dataset_sha256, read_vocabulary(cfg.model))
        files = result.get("weight_files", {})
        if {**files, **now.pop("weight_files")} != files:  # those of them that are here now
            return False
        return all(result.get(key) == value for key, value in now.items())


def plan(
    cells: Sequence[Cell], share: bool = True
) -> tuple[list[list[Cell]], list[Cell], dict[Cell, str]]:
    """Groups of cells that one pass serves, finished cells, and the reasons of failed ones."""
    groups: dict[object, list[Cell]] = {}
    finished, failed = [], {}
    known: dict[str, tuple[BaseSegDataset, str, str]] = {}  # each dataset is read once
    for cell in cells:
        try:
            cfg = cell.config()
            key = json.dumps(cfg.test_dataloader.dataset, sort_keys=True, default=str)
            if key not in known:
                dataset = build_dataset(cfg)
                images = dataset_fingerprint(dataset, ["img_path"])
                known[key] = dataset, dataset_fingerprint(dataset), images
            dataset, whole, images = known[key]
            check_metric(cfg, dataset)
            check_task(read_vocabulary(cfg.model), read_protocol(cfg.model), dataset)
            if cell.is_finished(cfg, whole):
                finished.append(cell)
                continue
            vision = {k: value for k, value in cfg.model.items() if k not in _OF_THE_TEXT}
            steps = cfg.test_dataloader.dataset.pipeline
            resize = [step for step in steps if step.type == "Resize"]
            group = json.dumps([vision, resize], sort_keys=True, default=str), images
            groups.setdefault(group if share else cell, []).append(cell)
        except SFPError as error:
            failed[cell] = str(error)
    return list(groups.values()), finished, failed


def run_group(cells: Sequence[Cell], fresh: bool = False, workers: int = 2) -> None:
    """Evaluate cells that share their images in one pass, and write each one's ``results.json``.

    Finished images of an interrupted pass are skipped, for each cell its own.

    Raises:
        SFPError: wrong data, options or weights, or another process is at work on one of the cells.
    """
    with contextlib.ExitStack() as held:
        for cell in sorted(cells, key=lambda cell: cell.folder):  # in one order, whoever else asks
            held.enter_context(only_one(cell.folder, "--out"))
            sweep(cell.folder)
        configs = [cell.config() for cell in cells]
        datasets = [build_dataset(cfg) for cfg in configs]
        model = build_model(configs[0])  # after the data, whose faults are found at once
        parts = []
        for cell, cfg, dataset in zip(cells, configs, datasets, strict=True):
            vocabulary, protocol = read_vocabulary(cfg.model), read_protocol(cfg.model)
            check_task(vocabulary, protocol, dataset)
            task = Task(model.pipeline.encode_text(vocabulary), protocol)
            part = Part(dataset, task)
            store = CountStore(cell.folder / "counts", run_provenance(cfg, model, part))
            held.callback(store.close)
            if fresh:
                store.clear()
            part.resume(store)
            parts.append(part)
        started = time.time()
        evaluate(model, parts, workers=workers)
        seconds = time.time() - started
        for cell, cfg, part in zip(cells, configs, parts, strict=True):
            others = [other.dataset for other in cells if other is not cell]
            path, provenance = cell.folder / "results.json", part.store.provenance
            write_results(path, cfg, model, part, part.figures(), provenance, seconds, others)
            part.store.clear()


def save_group(cells: Sequence[Cell], path: Path) -> None:
    make_folder(path.parent)
    with whole_file(path) as partial:
        partial.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))


def load_group(path: Path) -> list[Cell]:
    try:
        return [
            Cell(**{**fields, "overrides": tuple(fields["overrides"])})
            for fields in json.loads(path.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise SFPError(
            f"{path} holds no cells of a grid ({error}); start sfp benchmark again."
        ) from error


def free_devices(asked: Sequence[str] | None) -> list[str]:
    """The devices to run on: those asked for, else all GPUs, else the CPU.

    Raises:
        SFPError: a GPU that isn't there.
    """
    count = torch.cuda.device_count()
    for device in asked or ():
        if device != "cpu" and (not device.isdecimal() or int(device) >= count):
            raise SFPError(
                f"--devices names {device!r}, but there are {count} GPUs; give their numbers, or "
                f"cpu."
            )
    return list(asked or map(str, range(count)) or ()) or ["cpu"]
