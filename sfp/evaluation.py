"""Evaluation under mmengine: exact counts, disjoint shares for ranks, a progress bar, and ``results.json``."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS
from PIL import Image
from prettytable import PrettyTable
from torch.utils.data import Sampler
from tqdm import tqdm

from sfp.config import building, check_dataset
from sfp.counts import CountStore, Figures, as_json, count_image, sum_counts
from sfp.errors import SFPError
from sfp.files import whole_file
from sfp.methods import METHODS, Method, list_methods
from sfp.options import check_type
from sfp.pipeline import Protocol, Task, Vocabulary
from sfp.segmentor import SFPSegmentor

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "mmengine", "mmcv-lite", "mmcv", "onedl-mmsegmentation", "mmsegmentation", "numpy")


@METRICS.register_module()
class ClassIoUMetric(BaseMetric):
    """IoU of classes from exact integer counts per image, which are kept on disk while a run goes on.

    The figures are those of mmseg's ``IoUMetric``, unrounded. A label out of range is an error. Ranks may have different
    numbers of images; N ranks give what one gives, bit for bit.

    Args:
        ignore_index: label of pixels that are not evaluated.
        iou_metrics: for configs that say ``["mIoU"]``; nothing else is measured.

    Attributes:
        figures: after ``evaluate``, the ``Figures``.
        images: how many images they are of.
        resumed: how many of them an interrupted run had done.
    """

    default_prefix = None

    def __init__(self, ignore_index: int = 255, iou_metrics: Sequence[str] = ("mIoU",), **kwargs: Any):
        super().__init__(**kwargs)
        if list(iou_metrics) != ["mIoU"]:
            raise SFPError(
                f"iou_metrics={list(iou_metrics)} of ClassIoUMetric; it measures ['mIoU'] alone, use mmseg's IoUMetric for others."
            )
        check_type("ignore_index of ClassIoUMetric", ignore_index, int, 255)
        self.ignore_index = ignore_index
        self.counts: dict[str, np.ndarray] = {}
        self.store: CountStore | None = None
        self.figures: Figures | None = None
        self.images = 0
        self.resumed = 0

    def resume(self, store: CountStore, classes: int) -> set[str]:
        """Keep counts in a store from now on; returns the names of images that it has, on any rank."""
        self.store = store
        self.counts = store.read(classes)
        self.counts = {name: counts for part in all_gather_object(self.counts) for name, counts in part.items()}
        self.resumed = len(self.counts)
        return set(self.counts)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            name = short_name(sample["img_path"])
            prediction, labels = (sample[key]["data"].squeeze(0) for key in ("pred_sem_seg", "gt_sem_seg"))
            self.counts[name] = count_image(prediction, labels, classes, self.ignore_index, sample["seg_map_path"])
            if self.store is not None:
                self.store.add(name, self.counts[name])

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all ranks' images.

        Raises:
            SFPError: they are not as many as the dataset has.
        """
        everything = {name: counts for part in all_gather_object(self.counts) for name, counts in part.items()}
        if len(everything) != size:
            raise SFPError(f"{len(everything)} images were counted, but the dataset has {size}; two of its images may have one name.")
        names = self.dataset_meta["classes"]
        self.figures = Figures.of(sum_counts(everything.values(), len(names)))
        self.images = size
        self.counts = {}
        metrics = {key: getattr(self.figures, key) for key in ("mIoU", "aAcc", "mAcc", "mIoU_present")}
        if is_main_process():
            table = PrettyTable(["Class", "IoU", "Acc"])
            for name, iou, acc in zip(names, self.figures.iou, self.figures.acc, strict=True):
                table.add_row([name, f"{iou:.2f}", f"{acc:.2f}"])
            print_log(f"per class results:\n{table.get_string()}", MMLogger.get_current_instance())
        return metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Unused: ``evaluate`` gathers counts itself."""
        return {}


@DATA_SAMPLERS.register_module()
class DisjointSampler(Sampler):
    """Each rank's share of the images, none twice and none left out; no padding, so shares may differ by one.

    Args:
        dataset: the dataset.
        shuffle, seed: for configs that name them; the order is always the dataset's.
    """

    def __init__(self, dataset: Sized, shuffle: bool = False, seed: int | None = None):
        if shuffle:
            raise SFPError("DisjointSampler is for testing and does not shuffle; set test_dataloader.sampler.shuffle to False.")
        self.dataset = dataset
        self.left: list[int] = list(range(len(dataset)))

    def leave_out(self, names: Collection[str]) -> None:
        """Only images by other names are left to do."""
        self.left = [i for i, name in enumerate(image_names(self.dataset)) if name not in names]

    def __iter__(self) -> Iterator[int]:
        return iter(self.left[get_rank() :: get_world_size()])

    def __len__(self) -> int:
        return len(self.left[get_rank() :: get_world_size()])


def short_name(path: str | os.PathLike) -> str:
    """What counts know an image by: its file's name and folder, wherever the dataset lies."""
    return "/".join(Path(path).parts[-2:])


def build_dataset(cfg: Config) -> BaseSegDataset:
    """The dataset that a config evaluates; its failures name the file.

    Raises:
        SFPError: its folders or lists are missing, it has no images, or it can't be built, such as from a key that it doesn't take.
    """
    check_dataset(cfg)
    init_default_scope("mmseg")
    with building(f"The dataset of {Path(cfg.filename).name}"):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        dataset.full_init()
    dataset.pipeline = NamedFailures(dataset.pipeline)
    return dataset


def check_names(vocabulary: Vocabulary, dataset: BaseSegDataset, source: str = "The names file") -> None:
    """Raises SFPError where the names and the dataset have different numbers of classes."""
    classes = dataset.metainfo["classes"]
    if len(vocabulary.names) != len(classes):
        raise SFPError(
            f"{source} has {len(vocabulary.names)} classes, but {type(dataset).__name__} has {len(classes)}; "
            "give model.name_path a file with one line per class of the dataset, in its order."
        )


def check_task(vocabulary: Vocabulary, protocol: Protocol, dataset: BaseSegDataset, source: str = "The names file") -> None:
    """Raises SFPError where names, thresholds and a dataset don't fit each other.

    What a threshold takes from a class falls to class 0, which must be a background.
    """
    check_names(vocabulary, dataset, source)
    first = dataset.metainfo["classes"][0]
    given = [f"{key}={value}" for key, value in (("prob_thd", protocol.prob_thd), ("area_thd", protocol.area_thd)) if value]
    if given and first.lower() != "background":
        raise SFPError(
            f"model.{' and model.'.join(given)} would give pixels to the class 0 of {type(dataset).__name__}, {first!r}, which is no "
            "background; set model.prob_thd=0.0 and model.area_thd=None."
        )


def image_names(dataset: BaseSegDataset) -> list[str]:
    """The short names of an mmseg dataset's images, in its order."""
    return [short_name(dataset.get_data_info(index)["img_path"]) for index in range(len(dataset))]


def dataset_fingerprint(dataset: BaseSegDataset, files: Sequence[str] = ("img_path", "seg_map_path")) -> str:
    """SHA-256 over an mmseg dataset: the short names of all images and labels (or one of them) in their order, the images'
    sizes in bytes, and the labels' contents.

    An image that changes without changing its size in bytes is not noticed: to read all images would take as long as a fast evaluation.

    Raises:
        SFPError: a file is missing, or two images have one short name, by which their counts are known.
    """
    digest = hashlib.sha256()
    seen: dict[str, str] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        other = seen.setdefault(short_name(info["img_path"]), info["img_path"])
        if len(seen) <= index:
            raise SFPError(
                f"{type(dataset).__name__} has two images of one name, {other} and {info['img_path']}; list each once, or rename a folder."
            )
        for key in files:
            path = Path(info[key])
            try:
                if key == "img_path":
                    known = str(path.stat().st_size)
                else:
                    known = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{short_name(path)} {known}\n".encode())
            except OSError as error:
                raise SFPError(f"{path} of {type(dataset).__name__} is missing; run tools/check_dataset.py on the data.") from error
    return digest.hexdigest()


def code_fingerprint(method: type) -> str:
    """SHA-256 over the code that makes a method's figures, without comments and docstrings: its own files, and the rooms that it uses.

    Other methods' files take no part, so that work on one leaves the results of others valid.
    """
    package = Path(__file__).parent
    own = {Path(inspect.getsourcefile(cls)) for cls in method.__mro__ if issubclass(cls, Method)}
    others = {Path(inspect.getsourcefile(METHODS.get(name))) for name in list_methods()} - own
    rooms = (file for room in ("clip", "outliers", "methods", "pipeline") for file in (package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for file in sorted({*rooms, *own, package / "counts.py", package / "segmentor.py"} - others):
        digest.update(file.name.encode() + b"\0" + _code_alone(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _code_alone(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.dump(tree)


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar over the images of a test, on rank 0."""

    def before_test_epoch(self, runner: Runner) -> None:
        total = len(runner.test_dataloader.sampler)
        self.bar = tqdm(total=total, desc="evaluating", unit="image", mininterval=1.0, disable=not is_main_process(), file=sys.stderr)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None) -> None:
        self.bar.update(len(outputs))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.bar.close()


@contextmanager
def named_deaths() -> Iterator[None]:
    """Raises SFPError instead of torch's RuntimeErrors where a process that reads images, or another rank, died."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        again = "the same command again goes on from here"
        if "DataLoader worker" in str(error):
            raise SFPError(
                f"A process that reads images died ({reason}); {again}, and if memory ran out, set test_dataloader.num_workers=0."
            ) from error
        if "gloo" in str(error) or "NCCL" in str(error):
            raise SFPError(f"Another rank has ended ({reason}); see what it said, {again}.") from error
        raise


class NamedFailures:
    """A dataset's pipeline whose failures name the file: put in the place of ``dataset.pipeline``."""

    def __init__(self, pipeline: Callable[[dict], dict]):
        self.pipeline = pipeline

    def __call__(self, data: dict) -> dict:
        """Run the pipeline on one item.

        Raises:
            SFPError: something in it failed; names the image or label that can't be decoded, if one can't.
        """
        try:
            prepared = self.pipeline(data)
        except Exception as error:  # mmcv asserts, OpenCV and PIL raise their own
            for path in (data.get("img_path"), data.get("seg_map_path")):
                try:
                    with Image.open(path) as image:
                        image.load()
                except Exception as reason:
                    raise SFPError(f"{path} can't be read as an image ({reason}); put a sound copy in its place.") from error
            if isinstance(error, SFPError):
                raise
            self._check_label(data)
            reason = f"{type(error).__name__}: {error}"
            raise SFPError(f"{data.get('img_path')} can't be prepared ({reason}); check it and its label.") from error
        self._check_label(data)
        return prepared

    def _check_label(self, data: dict) -> None:
        """Raises SFPError for a label map that mmcv would fold into eight bits, or that was never exact."""
        if not any(type(step).__name__ == "LoadAnnotations" for step in getattr(self.pipeline, "transforms", ())):
            return
        with Image.open(data["seg_map_path"]) as label:
            if label.mode not in ("L", "P", "1") or label.format == "JPEG":
                raise SFPError(
                    f"The label {data['seg_map_path']} is a {label.format} of mode {label.mode}, which is not read exactly; save it as PNG "
                    "with one byte a pixel, or load it by LoadWideLabels."
                )


def run_card(config_sha256: str, model: SFPSegmentor, task: Task, dataset: BaseSegDataset) -> dict[str, str]:
    """What the counts of a run depend on, by name: config, names, weights, dataset, code, and the kind of device."""
    return {
        "config": config_sha256,
        "names": names_hash(task.vocabulary),
        "weights": model.frozen.fingerprint,
        "dataset": dataset_fingerprint(dataset),
        "code": code_fingerprint(type(model.pipeline.method)),
        "device": f"{model.frozen.device.type} {model.frozen.precision}",
    }


def write_results(
    path: Path,
    model: SFPSegmentor,
    task: Task,
    dataset: BaseSegDataset,
    metric: ClassIoUMetric,
    card: Mapping[str, str],
    seconds: float,
    shared_with: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``results.json`` whole: the figures, and the whole protocol that they hold for.

    Args:
        seconds: of this process; images that an interrupted run had done are not in it.
        shared_with: further datasets of the same pass of the images, whose seconds these are, too.

    Returns:
        What was written. Metrics are percentages.
    """
    frozen, method, bank = model.frozen, model.pipeline.method, model.pipeline.text_bank
    result = {
        "method": method.name,
        "options": method.options(),
        "changed_options": method.changed_options(),
        "purify": method.purifier is not None,
        "pm": method.purifier.detector.name if method.purifier else None,
        "purifier": repr(method.purifier.detector) if method.purifier else None,
        "backbone": frozen.name,
        "pretrained": frozen.pretrained,
        "weights_sha256": frozen.fingerprint,
        "precision": frozen.precision,
        "device": str(frozen.device),
        "dataset": type(dataset).__name__,
        **as_json(metric.figures, dataset.metainfo["classes"]),
        "images": metric.images,
        "seconds": round(seconds, 2),
        "images_resumed": metric.resumed,
        "shared_with": list(shared_with),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": {**task.protocol.as_dict(), "short_side": short_side_of(dataset)},
        "names": task.vocabulary.words,
        "names_sha256": card["names"],
        "prompts": len(bank.prompts),
        "prompts_sha256": hashlib.sha256(json.dumps(list(bank.prompts)).encode()).hexdigest(),
        "dataset_fingerprint": card["dataset"],
        "code_sha256": card["code"],
        "versions": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}, "sfp": _version("sfp")},
        "config_sha256": card["config"],
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    return result


def names_hash(vocabulary: Vocabulary) -> str:
    """SHA-256 over the classes and their query words."""
    return hashlib.sha256(json.dumps(vocabulary.words).encode()).hexdigest()


def spread_over(dataset: Sized, images: int) -> list[int]:
    """Indices of at most so many images, evenly over a dataset from its first to its last."""
    return np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)).tolist()


def short_side_of(dataset: BaseSegDataset) -> int | None:
    """To what a dataset's pipeline resizes the short side of its images."""
    transforms = getattr(dataset.pipeline, "pipeline", dataset.pipeline).transforms
    return next((min(step.scale) for step in transforms if type(step).__name__ == "Resize" and step.scale), None)


def config_hash(cfg: Config) -> str:
    """SHA-256 of a config as read and overridden, wherever its folder lies."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str).replace(os.path.dirname(os.path.abspath(cfg.filename)), ".")
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
