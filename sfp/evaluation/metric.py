"""Figures of all ranks' counts, and the metric that mmengine's own runner makes them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmseg.datasets import BaseSegDataset
from mmseg.registry import METRICS
from prettytable import PrettyTable

from sfp.errors import SFPError
from sfp.evaluation.config import building
from sfp.evaluation.counts import Figures, count_image, sum_counts
from sfp.evaluation.dataset import short_name
from sfp.options import check_type

MEANS = ("mIoU", "aAcc", "mAcc", "mIoU_present")


def gather_counts(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The counts of all ranks' images, by the images' short names."""
    return {name: own for part in all_gather_object(counts) for name, own in part.items()}


def figures_of_all(counts: dict[str, np.ndarray], images: int, classes: int) -> Figures:
    """Figures over all ranks' images.

    Raises:
        SFPError: the counts are not of so many images.
    """
    every = gather_counts(counts)
    if len(every) != images:
        raise SFPError(
            f"{len(every)} images were counted, but there are {images};"
            " two of them may have one name."
        )
    return Figures.of(sum_counts(every.values(), classes))


def class_table(figures: Figures, names: Sequence[str]) -> str:
    """IoU and accuracy of each class in percent, for the terminal."""
    table = PrettyTable(["Class", "IoU", "Acc"])
    for name, iou, acc in zip(names, figures.iou, figures.acc, strict=True):
        table.add_row([name, f"{iou:.2f}", f"{acc:.2f}"])
    return table.get_string()


def check_metric(cfg: Config, dataset: BaseSegDataset) -> None:
    """Raises SFPError where the evaluator is another one than ``ClassIoUMetric``, or ignores
    another label than the dataset.
    """
    options = dict(cfg.test_evaluator)
    if options.pop("type", None) != "ClassIoUMetric":
        raise SFPError(
            f"test_evaluator of {cfg.filename} has no ClassIoUMetric;"
            " set it to dict(type='ClassIoUMetric')."
        )
    with building("The test_evaluator"):
        metric = ClassIoUMetric(**{"prefix": "sfp", **options})
    if metric.ignore_index != dataset.ignore_index:
        raise SFPError(
            f"test_evaluator.ignore_index is {metric.ignore_index}, but that of"
            f" {type(dataset).__name__} {dataset.ignore_index}; set both to the label of pixels"
            " that are not evaluated."
        )


@METRICS.register_module()
class ClassIoUMetric(BaseMetric):
    """IoU of classes from exact integer counts per image.

    The figures are those of mmseg's ``IoUMetric``, unrounded. A label out of range is an error. An
    image that a sampler repeats counts once.

    Args:
        ignore_index: label of pixels that are not evaluated.
        iou_metrics: for configs that say ``["mIoU"]``; nothing else is measured.

    Attributes:
        figures: after ``evaluate``, the ``Figures``.
    """

    default_prefix = None

    def __init__(
        self, ignore_index: int = 255, iou_metrics: Sequence[str] = ("mIoU",), **kwargs: Any
    ):
        super().__init__(**kwargs)
        if list(iou_metrics) != ["mIoU"]:
            raise SFPError(
                f"iou_metrics={list(iou_metrics)} of ClassIoUMetric; it measures ['mIoU'] alone;"
                " use mmseg's IoUMetric for others."
            )
        check_type("ignore_index of ClassIoUMetric", ignore_index, int, 255)
        self.ignore_index = ignore_index
        self.counts: dict[str, np.ndarray] = {}
        self.figures: Figures | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            labels, truth = (
                sample[key]["data"].squeeze(0) for key in ("pred_sem_seg", "gt_sem_seg")
            )
            name = short_name(sample["img_path"])
            file = sample["seg_map_path"]
            self.counts[name] = count_image(labels, truth, classes, self.ignore_index, file)

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all ranks' images, in percent.

        Raises:
            SFPError: they are not as many as the dataset has.
        """
        names = self.dataset_meta["classes"]
        self.figures = figures_of_all(self.counts, size, len(names))
        self.counts = {}
        if is_main_process():
            table = class_table(self.figures, names)
            print_log(f"per class results:\n{table}", MMLogger.get_current_instance())
        return {key: getattr(self.figures, key) for key in MEANS}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Unused: ``evaluate`` gathers counts itself."""
        return {}
