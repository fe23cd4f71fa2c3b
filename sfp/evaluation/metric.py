"""The classes that mmengine's runner evaluates with: exact counts, disjoint shares for ranks, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.runner import Runner
from mmseg.registry import DATA_SAMPLERS, HOOKS, METRICS
from prettytable import PrettyTable
from torch.utils.data import Sampler
from tqdm import tqdm

from sfp.errors import SFPError
from sfp.evaluation.counts import CountStore, Figures, count_image, sum_counts
from sfp.evaluation.dataset import image_names, short_name
from sfp.options import check_type


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

    def __init__(
        self, ignore_index: int = 255, iou_metrics: Sequence[str] = ("mIoU",), **kwargs: Any
    ):
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
        self.counts = {
            name: counts for part in all_gather_object(self.counts) for name, counts in part.items()
        }
        self.resumed = len(self.counts)
        return set(self.counts)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            name = short_name(sample["img_path"])
            prediction, labels = (
                sample[key]["data"].squeeze(0) for key in ("pred_sem_seg", "gt_sem_seg")
            )
            self.counts[name] = count_image(
                prediction, labels, classes, self.ignore_index, sample["seg_map_path"]
            )
            if self.store is not None:
                self.store.add(name, self.counts[name])

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all ranks' images.

        Raises:
            SFPError: they are not as many as the dataset has.
        """
        everything = {
            name: counts for part in all_gather_object(self.counts) for name, counts in part.items()
        }
        if len(everything) != size:
            raise SFPError(
                f"{len(everything)} images were counted, but the dataset has {size}; two of its images may have one name."
            )
        names = self.dataset_meta["classes"]
        self.figures = Figures.of(sum_counts(everything.values(), len(names)))
        self.images = size
        self.counts = {}
        metrics = {
            key: getattr(self.figures, key) for key in ("mIoU", "aAcc", "mAcc", "mIoU_present")
        }
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
            raise SFPError(
                "DisjointSampler is for testing and does not shuffle; set test_dataloader.sampler.shuffle to False."
            )
        self.dataset = dataset
        self.left: list[int] = list(range(len(dataset)))

    def leave_out(self, names: Collection[str]) -> None:
        """Only images by other names are left to do."""
        self.left = [i for i, name in enumerate(image_names(self.dataset)) if name not in names]

    def __iter__(self) -> Iterator[int]:
        return iter(self.left[get_rank() :: get_world_size()])

    def __len__(self) -> int:
        return len(self.left[get_rank() :: get_world_size()])


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar over the images of a test, on rank 0."""

    def before_test_epoch(self, runner: Runner) -> None:
        total = len(runner.test_dataloader.sampler)
        self.bar = tqdm(
            total=total,
            desc="evaluating",
            unit="image",
            mininterval=1.0,
            disable=not is_main_process(),
            file=sys.stderr,
        )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        self.bar.update(len(outputs))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.bar.close()
