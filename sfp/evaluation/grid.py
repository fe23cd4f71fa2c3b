"""A grid of evaluations: methods x backbones x datasets. Datasets that share their images share one pass of them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmseg.datasets import BaseSegDataset
from mmseg.registry import MODELS
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sfp.errors import SFPError
from sfp.evaluation.config import CONFIGS, building, read_config
from sfp.evaluation.counts import CountStore
from sfp.evaluation.dataset import build_dataset, check_task, image_names, named_deaths
from sfp.evaluation.metric import ClassIoUMetric
from sfp.evaluation.provenance import (
    code_fingerprint,
    config_hash,
    dataset_fingerprint,
    names_hash,
    run_card,
    write_results,
)
from sfp.evaluation.tables import read_results
from sfp.files import make_folder, only_one, sweep, whole_file
from sfp.methods import METHODS, check_method
from sfp.options import split_spec
from sfp.pipeline import Task
from sfp.segmentor import method_options, read_protocol, read_vocabulary


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        method: a method's name, or ``NAME:KEY=VALUE,KEY=VALUE`` with options of its own.
        backbone: a model's name, or ``NAME:TAG`` with the tag or path of other weights than OpenAI's.
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
                re.sub(r"[^\w.=,@-]+", "-", part)
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

    def is_finished(self, cfg, dataset) -> bool:
        """Whether its results are there, of this config, dataset and code."""
        path = self.folder / "results.json"
        if not path.is_file():
            return False
        try:
            result = read_results(path, dict)
        except SFPError:  # cut or damaged: measured again and written over
            return False
        code = code_fingerprint(METHODS.get(cfg.model.method))
        now = dict(
            config_sha256=config_hash(cfg),
            dataset_fingerprint=dataset_fingerprint(dataset),
            code_sha256=code,
        )
        now["names_sha256"] = names_hash(read_vocabulary(cfg.model))
        return all(result.get(key) == value for key, value in now.items())


def plan(
    cells: Sequence[Cell], share: bool = True
) -> tuple[list[list[Cell]], list[Cell], dict[Cell, str]]:
    """Groups of cells that one pass of the images serves, cells that are finished, and cells that can't start with the reason."""
    groups: dict[object, list[Cell]] = {}
    finished, failed = [], {}
    for cell in cells:
        try:
            cfg = cell.config()
            dataset = build_dataset(cfg)
            check_task(read_vocabulary(cfg.model), read_protocol(cfg.model), dataset)
            if cell.is_finished(cfg, dataset):
                finished.append(cell)
                continue
            vision = {key: value for key, value in cfg.model.items() if key not in _OF_THE_TEXT}
            resize = [
                step for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize"
            ]
            key = (
                json.dumps([vision, resize], sort_keys=True, default=str),
                dataset_fingerprint(dataset, ["img_path"]),
            )
            groups.setdefault(key if share else cell, []).append(cell)
        except SFPError as error:
            failed[cell] = str(error)
    return list(groups.values()), finished, failed


# of a model's config: what may differ between cells that share a pass
_OF_THE_TEXT = (
    "name_path", "names", "name_separator", "logit_scale", "prob_thd", "area_thd", "pamr_iterations", "pamr_dilations",
)  # fmt: skip


class _Joined(Dataset):
    """Of each image to do, the items of several datasets that have it; None where a dataset's cell is done with it.

    Args:
        datasets: with the same images, in any order.
        wanted: for each dataset the images still to do, by short name.
    """

    def __init__(self, datasets: Sequence, wanted: Sequence[set[str]]):
        self.datasets, self.wanted = datasets, wanted
        self.places = [
            {name: i for i, name in enumerate(image_names(dataset))} for dataset in datasets
        ]
        self.names = [name for name in self.places[0] if any(name in left for left in wanted)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list:
        name = self.names[index]
        joined = zip(self.datasets, self.places, self.wanted, strict=True)
        return [dataset[places[name]] if name in left else None for dataset, places, left in joined]


def run_group(cells: Sequence[Cell], fresh: bool = False, workers: int = 2) -> None:
    """Evaluate cells that share their images in one pass, and write each one's ``results.json``.

    Finished images of an interrupted pass are skipped, for each cell its own.

    Raises:
        SFPError: wrong data, options or weights, or another process is at work on one of the cells.
    """
    with contextlib.ExitStack() as held, named_deaths():
        for cell in sorted(cells, key=lambda cell: cell.folder):  # in one order, whoever else asks
            held.enter_context(only_one(cell.folder, "--out"))
            sweep(cell.folder)
        _run_group(cells, fresh, workers)


def _run_group(cells: Sequence[Cell], fresh: bool, workers: int) -> None:
    configs = [cell.config() for cell in cells]
    datasets = [build_dataset(cfg) for cfg in configs]
    with building("The model"):
        model = MODELS.build(configs[0].model)  # after the data, whose faults are found in no time
    parts = [
        _part(cell, cfg, dataset, model, fresh)
        for cell, cfg, dataset in zip(cells, configs, datasets, strict=True)
    ]
    started = time.time()
    joined = _Joined([part.dataset for part in parts], [part.left for part in parts])
    try:
        for items in tqdm(
            DataLoader(joined, batch_size=1, num_workers=workers, collate_fn=_only),
            unit="image",
            mininterval=1.0,
        ):
            asked = [
                (part, item) for part, item in zip(parts, items, strict=True) if item is not None
            ]
            first = asked[0][1]
            batch = model.data_preprocessor(
                dict(inputs=[first["inputs"]], data_samples=[first["data_samples"]])
            )
            sizes = [[tuple(item["data_samples"].ori_shape[:2])] for _, item in asked]
            found = model.pipeline.segment(
                list(batch["inputs"]), [part.task for part, _ in asked], sizes
            )
            for (part, item), ((labels, _),) in zip(asked, found, strict=True):
                sample = item["data_samples"]
                truth = dict(
                    gt_sem_seg=dict(data=sample.gt_sem_seg.data),
                    pred_sem_seg=dict(data=labels[None]),
                )
                part.metric.process(
                    None,
                    [dict(img_path=sample.img_path, seg_map_path=sample.seg_map_path, **truth)],
                )
    finally:
        for part in parts:
            part.store.close()
    seconds = time.time() - started
    for part in parts:
        part.metric.evaluate(len(part.dataset))
        others = [cell.dataset for cell in cells if cell is not part.cell]
        write_results(
            part.cell.folder / "results.json",
            model,
            part.task,
            part.dataset,
            part.metric,
            part.card,
            seconds,
            others,
        )
        part.store.clear()


@dataclass
class _Part:
    """One cell of a pass at work; ``left`` are the images still to do, by short name."""

    cell: Cell
    dataset: BaseSegDataset
    task: Task
    metric: ClassIoUMetric
    store: CountStore
    card: dict[str, str]
    left: set[str]


def _part(cell: Cell, cfg, dataset: BaseSegDataset, model, fresh: bool) -> _Part:
    """Make ready what a cell needs, and read what an interrupted pass left of it."""
    task = _task(model, cfg)
    check_task(task.vocabulary, task.protocol, dataset)
    metric = ClassIoUMetric(
        **{key: value for key, value in cfg.test_evaluator.items() if key != "type"}
    )
    metric.dataset_meta = dataset.metainfo
    card = run_card(config_hash(cfg), model, task, dataset)
    store = CountStore(cell.folder / "counts", card)
    if fresh:
        store.clear()
    left = set(image_names(dataset)) - metric.resume(store, len(dataset.metainfo["classes"]))
    return _Part(cell, dataset, task, metric, store, card, left)


def _only(items: list) -> list:
    """The one item of a batch."""
    return items[0]


def _task(model, cfg) -> Task:
    """What a cell asks of each image."""
    vocabulary = read_vocabulary(cfg.model)
    return Task(vocabulary, model.pipeline.embed_text(vocabulary), read_protocol(cfg.model))


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
            f"{path} holds no cells of a grid ({error}); start tools/benchmark.py again."
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
                f"--devices names {device!r}, but there are {count} GPUs; give their numbers, or cpu."
            )
    return list(asked or map(str, range(count)) or ()) or ["cpu"]
