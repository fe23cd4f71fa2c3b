"""mIoU from exact counts under mmengine's own runner; this project's programs use ``loop``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from sfp.errors import SFPError
from sfp.evaluation.counts import Figures, count_image, sum_counts
from sfp.evaluation.dataset import short_name
from sfp.options import check_type


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
        """Figures over all ranks' images, in percent."""
        parts = all_gather_object(self.counts)
        every = {name: counts for part in parts for name, counts in part.items()}
        classes = len(self.dataset_meta["classes"])
        self.figures = Figures.of(sum_counts(every.values(), classes))
        self.counts = {}
        return {key: getattr(self.figures, key) for key in ("mIoU", "aAcc", "mAcc")}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Unused: ``evaluate`` gathers counts itself."""
        return {}
