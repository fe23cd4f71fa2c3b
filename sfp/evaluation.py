"""Evaluation under mmengine: IoU per class, a progress bar, and the ``results.json`` of a finished run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from mmseg.registry import HOOKS, METRICS
from PIL import Image
from tqdm import tqdm

from sfp.errors import SFPError
from sfp.files import whole_file

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "mmengine", "mmcv-lite", "mmcv", "onedl-mmsegmentation", "mmsegmentation", "numpy")


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric``, which also keeps what it found for each class.

    Attributes:
        per_class: after ``compute_metrics``, metric name to values in percent, one per class, NaN where undefined.
        images: how many images were counted.
    """

    per_class: dict[str, list[float]]
    images: int = 0

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        totals = [sum(part) for part in zip(*results, strict=True)]
        by_name = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        self.per_class = {name: [float(v) * 100 for v in values] for name, values in by_name.items() if name != "aAcc"}
        self.images = len(results)
        return metrics


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar over the images of a test, on rank 0."""

    def before_test_epoch(self, runner: Runner) -> None:
        total = len(runner.test_dataloader)
        self.bar = tqdm(total=total, desc="evaluating", unit="image", mininterval=1.0, disable=not is_main_process(), file=sys.stderr)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None) -> None:
        self.bar.update()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.bar.close()


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
            return self.pipeline(data)
        except Exception as error:  # mmcv asserts, OpenCV and PIL raise their own
            for path in (data.get("img_path"), data.get("seg_map_path")):
                try:
                    with Image.open(path) as image:
                        image.load()
                except Exception as reason:
                    raise SFPError(f"{path} can't be read as an image ({reason}); put a sound copy in its place.") from error
            raise SFPError(
                f"{data.get('img_path')} can't be prepared ({type(error).__name__}: {error}); check it and its label."
            ) from error


def write_results(path: Path, runner: Runner, config_sha256: str, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
    """Write ``results.json`` whole: method, backbone, dataset, metrics, per-class IoU, versions, config hash.

    Returns:
        What was written. Metrics are percentages.
    """
    model = getattr(runner.model, "module", runner.model)
    metric = next(m for m in runner.test_evaluator.metrics if isinstance(m, ClassIoUMetric))
    classes = runner.test_dataloader.dataset.metainfo["classes"]
    frozen, method = model.frozen, model.pipeline.method
    ious = metric.per_class["IoU"]
    result = {
        "method": method.name,
        "purify": method.purifier is not None,
        "pm": method.purifier.detector.name if method.purifier else None,
        "backbone": frozen.name,
        "pretrained": frozen.pretrained,
        "weights_sha256": frozen.fingerprint,
        "precision": frozen.precision,
        "device": str(frozen.device),
        "dataset": type(runner.test_dataloader.dataset).__name__,
        "mIoU": float(np.nanmean(ious)),
        "aAcc": float(metrics["aAcc"]),
        "mAcc": float(np.nanmean(metric.per_class["Acc"])),
        "IoU_per_class": {name: None if np.isnan(iou) else iou for name, iou in zip(classes, ious, strict=True)},
        "images": metric.images,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": model.pipeline.protocol.as_dict(),
        "names": _queries_by_class(model.vocabulary),
        "prompts": len(model.pipeline.text_bank.prompts),
        "versions": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}, "sfp": _version("sfp")},
        "config_sha256": config_sha256,
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    return result


def config_hash(cfg: Config) -> str:
    """SHA-256 of a config as read and overridden, wherever its folder lies."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str).replace(os.path.dirname(os.path.abspath(cfg.filename)), ".")
    return hashlib.sha256(text.encode()).hexdigest()


def _queries_by_class(vocabulary: Any) -> list[list[str]]:
    groups: list[list[str]] = [[] for _ in vocabulary.names]
    for query, number in zip(vocabulary.queries, vocabulary.class_of_query, strict=True):
        groups[number].append(query)
    return groups


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
