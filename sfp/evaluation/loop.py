"""The one evaluation loop.

A pass of the images for one or more vocabularies, datasets and protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader, Dataset

from sfp.evaluation.counts import CountStore, Figures, checked_counts, count_pixels
from sfp.evaluation.dataset import image_names, named_deaths, short_name
from sfp.evaluation.metric import figures_of_all, gather_counts
from sfp.pipeline import Task
from sfp.progress import progress
from sfp.segmentor import SFPSegmentor, pictures
from sfp.transfer import Doubts


@dataclass
class Part:
    """One task on one dataset.

    Attributes:
        dataset: of mmsegmentation.
        task: what is asked of each image.
        classes: names of the classes that are counted; the dataset's own by default.
        chosen: short names of the images to evaluate; all by default.
        store: keeps the counts while the pass goes on; None for nowhere.
        counts: pixels of each class, (3, K) int64, of each finished image by its short name.
        resumed: how many images an interrupted pass had done.
    """

    dataset: BaseSegDataset
    task: Task
    classes: Sequence[str] = ()
    chosen: Collection[str] = ()
    store: CountStore | None = None
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    resumed: int = 0

    def __post_init__(self):
        self.classes = self.classes or self.dataset.metainfo["classes"]
        self.chosen = list(self.chosen or image_names(self.dataset))

    def resume(self, store: CountStore) -> None:
        """Keep counts in a store from now on, and take those that it has, of any rank."""
        self.store = store
        self.counts = gather_counts(store.read(len(self.classes)))
        self.resumed = len(self.counts)

    def count(self, sample: SegDataSample, labels: torch.Tensor) -> torch.Tensor:
        """``count_pixels`` of an image by its labels (H, W), on their device.

        Raises:
            SFPError: image and label have two sizes.
        """
        truth, ignore = sample.gt_sem_seg.data[0], self.dataset.ignore_index
        return count_pixels(labels, truth, len(self.classes), ignore, sample.seg_map_path)

    def add(self, sample: SegDataSample, labels: torch.Tensor, counts: torch.Tensor) -> None:
        """Keep an image's counts, which ``count`` gave and which are on the CPU now.

        Raises:
            SFPError: a label or a prediction is no class.
        """
        name, truth = short_name(sample.img_path), sample.gt_sem_seg.data[0]
        ignore, file = self.dataset.ignore_index, sample.seg_map_path
        self.counts[name] = checked_counts(counts, labels, truth, ignore, file)
        if self.store is not None:
            self.store.add(name, self.counts[name])

    def figures(self) -> Figures:
        """Figures over all ranks' images.

        Raises:
            SFPError: they are not as many as were to be evaluated.
        """
        return figures_of_all(self.counts, len(self.chosen), len(self.classes))


class _Images(Dataset):
    """Of each image to do, its item in each part that still wants it, None in the others."""

    def __init__(self, parts: Sequence[Part]):
        self.datasets = [part.dataset for part in parts]
        self.places = [{n: i for i, n in enumerate(image_names(d))} for d in self.datasets]
        self.wanted = [set(part.chosen) - set(part.counts) for part in parts]
        names = [name for name in self.places[0] if any(name in own for own in self.wanted)]
        self.names = names[get_rank() :: get_world_size()]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list:
        name, items = self.names[index], {}  # a dataset of several parts is read once
        for data, places, wanted in zip(self.datasets, self.places, self.wanted, strict=True):
            if name in wanted and id(data) not in items:
                items[id(data)] = data[places[name]]
        pairs = zip(self.datasets, self.wanted, strict=True)
        return [items[id(data)] if name in wanted else None for data, wanted in pairs]


@named_deaths()
def evaluate(
    model: SFPSegmentor,
    parts: Sequence[Part],
    *,
    batch_size: int = 1,
    workers: int = 2,
    after_image: Callable[[Part, dict, torch.Tensor], None] | None = None,
    bar: bool = True,
) -> None:
    """Fill the counts of parts whose datasets share their images, in one pass of these.

    Each rank does its share, none twice and none left out.

    Args:
        model: makes the views; the tasks' windows are its own.
        batch_size: images whose windows share batches.
        workers: processes that read images.
        after_image: called with each part, item and labels (H, W).
        bar: show the progress.

    Raises:
        SFPError: an image or a label that can't be read, or labels that are no classes.
    """
    images = _Images(parts)
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=list)
    shown = progress(
        total=len(images),
        desc="evaluating",
        unit="image",
        mininterval=1.0,
        disable=not bar or not is_main_process() or not len(images),
    )
    with shown:
        for batch in loader:
            groups: dict[tuple[int, ...], list[list]] = {}  # images by the parts that want them
            for items in batch:
                wanting = tuple(i for i, item in enumerate(items) if item is not None)
                groups.setdefault(wanting, []).append(items)
            for wanting, group in groups.items():
                _evaluate_group(model, [parts[i] for i in wanting], wanting, group, after_image)
            shown.update(len(batch))


def _evaluate_group(
    model: SFPSegmentor,
    parts: Sequence[Part],
    places: Sequence[int],
    group: Sequence[list],
    after_image: Callable | None,
) -> None:
    """Images that the same parts want: ``group`` has for each image the items of all parts."""
    firsts = [items[places[0]] for items in group]
    samples = [item["data_samples"] for item in firsts]
    inputs = [item["inputs"] for item in firsts]
    batch = model.data_preprocessor(dict(inputs=inputs, data_samples=samples))
    sizes = [tuple(sample.ori_shape[:2]) for sample in samples]
    tasks = [part.task for part in parts]
    doubts = Doubts()  # asked in the copy that brings the counts
    found = model.pipeline.segment(pictures(batch["inputs"], samples), tasks, sizes, doubts=doubts)
    done = [
        (part, items[place], labels)
        for part, place, results in zip(parts, places, found, strict=True)
        for items, (labels, _) in zip(group, results, strict=True)
    ]
    counted = [part.count(item["data_samples"], labels) for part, item, labels in done]
    for (part, item, labels), counts in zip(done, doubts.settle(counted), strict=True):
        if after_image is not None:  # before it counts as done, so that a failure is made up
            after_image(part, item, labels)
        part.add(item["data_samples"], labels, counts)
