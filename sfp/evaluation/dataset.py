"""The dataset that a config evaluates.

Building it, what must fit it, errors that name its files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from sfp.datasets.exact import PICTURES
from sfp.datasets.labels import require_exact
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.evaluation.config import building, check_dataset, require_type
from sfp.pipeline import Protocol, Vocabulary


def build_dataset(cfg: Config) -> BaseSegDataset:
    """The dataset that a config evaluates; its failures name the file.

    Raises:
        SFPError: its folders or lists are missing, it has no images, or it can't be built, such as
            from a key that it doesn't take.
    """
    init_default_scope("mmseg")
    require_type("test_dataloader.dataset.type", cfg.test_dataloader.dataset.type, DATASETS)
    check_dataset(cfg)
    with building(f"The dataset of {Path(cfg.filename).name}"):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        dataset.full_init()
    _require_all(dataset)
    dataset.pipeline = NamedFailures(dataset.pipeline)
    return dataset


def _require_all(dataset: BaseSegDataset) -> None:
    """Raises SFPError for pictures in a folder of a dataset without list that are none of its own.

    mmseg takes a folder's files by the ending of their names, capitals included.
    """
    folder = dataset.data_prefix.get("img_path")
    if dataset.ann_file or not folder or not Path(folder).is_dir():
        return
    ending = dataset.img_suffix
    for path in sorted(Path(folder).rglob("*")):
        hidden, taken = path.name[0] == ".", path.name.endswith(ending)
        if path.suffix.lower() in PICTURES and not hidden and not taken:
            raise SFPError(
                f"{path} of {type(dataset).__name__} would be left out, as it doesn't end in"
                f" {dataset.img_suffix}; rename it, or move it out of the folder."
            )


def check_names(
    vocabulary: Vocabulary, classes: Sequence[str], dataset: str, source: str = "The names file"
) -> None:
    """Raises SFPError where names are not those of a dataset's classes, one for each, in their
    order.

    A name may be any other word for its class, but no other class's name as the dataset has it: in
    the first place of a line, or in any place where both lines lack their classes' names.

    Args:
        vocabulary: the names.
        classes: the dataset's.
        dataset: what it is called, for the error.
        source: of the names, for the error.
    """
    given = len(vocabulary.names)
    if given != len(classes):
        raise SFPError(
            f"{source} has {given} classes, but {dataset} has {len(classes)};"
            " give model.name_path a file with one line per class of the dataset, in its order."
        )
    lines = [[_plain(word) for word in words] for words in vocabulary.words]
    places = {_plain(name): place for place, name in enumerate(classes)}
    is_named = [_plain(name) in words for name, words in zip(classes, lines, strict=True)]
    for line, words in enumerate(lines):
        for number, word in enumerate(words):
            other = places.get(word, line)
            swapped = number == 0 or not (is_named[line] or is_named[other])
            if word != _plain(classes[line]) and other != line and swapped:
                raise SFPError(
                    f"{source} has {vocabulary.words[line][number]!r} in line {line + 1}, where"
                    f" {dataset} has the class {classes[line]!r}; that is the name of its class"
                    f" in line {other + 1}, so put the lines in the dataset's order."
                )


def _plain(name: str) -> str:
    """A name without capitals and marks, as two lists of the same classes may differ in them."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.findall(r"[^\W_]+", text)) or text


def check_task(
    vocabulary: Vocabulary,
    protocol: Protocol,
    dataset: BaseSegDataset,
    source: str = "The names file",
) -> None:
    """Raises SFPError where names, thresholds and a dataset don't fit each other.

    What a threshold takes from a class falls to class 0, which must be a background.
    """
    classes, name = dataset.metainfo["classes"], type(dataset).__name__
    check_names(vocabulary, classes, name, source)
    protocol.require_background(classes[0], name)


def short_name(path: str | os.PathLike) -> str:
    """What counts know an image by: its file's name and folder, wherever the dataset lies."""
    return "/".join(Path(path).parts[-2:])


def image_names(dataset: BaseSegDataset) -> list[str]:
    """The short names of an mmseg dataset's images, in its order."""
    return [short_name(dataset.get_data_info(index)["img_path"]) for index in range(len(dataset))]


def spread_over(dataset: Sized, images: int) -> list[int]:
    """Indices of at most so many images, evenly over a dataset from its first to its last."""
    places = np.linspace(0, len(dataset) - 1, min(images, len(dataset)))
    return np.unique(places.round().astype(int)).tolist()


def short_side_of(dataset: BaseSegDataset) -> int | None:
    """To what a dataset's pipeline resizes the short side of its images."""
    transforms = getattr(dataset.pipeline, "pipeline", dataset.pipeline).transforms
    resizes = [step for step in transforms if type(step).__name__ == "Resize" and step.scale]
    return min(resizes[0].scale) if resizes else None


class NamedFailures:
    """A dataset's pipeline whose failures name the file, in the place of ``dataset.pipeline``."""

    def __init__(self, pipeline: Callable[[dict], dict]):
        self.pipeline = pipeline

    def __call__(self, data: dict) -> dict:
        """Run the pipeline on one item.

        Raises:
            SFPError: something in it failed; names the image or label that can't be decoded, if one
                can't.
        """
        try:
            prepared = self.pipeline(data)
        except Exception as error:  # mmcv asserts, OpenCV and PIL raise their own
            refuse_want_of_memory(error, f"preparing {data.get('img_path')}")
            for path in (data.get("img_path"), data.get("seg_map_path")):
                _require_image(path)
            if isinstance(error, SFPError):
                raise
            self._check_label(data)
            reason = f"{type(error).__name__}: {error}"
            raise SFPError(
                f"{data.get('img_path')} can't be prepared ({reason}); check it and its label."
            ) from error
        self._check_label(data)
        return prepared

    def _check_label(self, data: dict) -> None:
        """Raises SFPError for a label map that mmseg's loader folds into 8 bits or reads otherwise
        than it is.
        """
        steps = getattr(self.pipeline, "transforms", ())
        if not any(type(step).__name__ == "LoadAnnotations" for step in steps):
            return
        require_exact(data["seg_map_path"], data["img_path"])
        with Image.open(data["seg_map_path"]) as label:
            if label.mode.startswith("I"):
                raise SFPError(
                    f"The label {data['seg_map_path']} has 16 bits a pixel, which LoadAnnotations"
                    " folds into 8; load it by LoadLabels."
                )


def _require_image(path: str | None) -> None:
    """Raises SFPError for a file that can't be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as reason:  # PIL's decoders raise anything
        refuse_want_of_memory(reason, f"reading {path}")
        raise SFPError(
            f"{path} can't be read as an image ({reason}); put a sound copy in its place."
        ) from reason


@contextmanager
def named_deaths() -> Iterator[None]:
    """SFPError instead of torch's RuntimeErrors where a reading process, or another rank, died."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        again = "the same command again goes on from here"
        if "DataLoader worker" in str(error):
            raise SFPError(
                f"A process that reads images died ({reason}); {again},"
                " and if memory ran out, set test_dataloader.num_workers=0."
            ) from error
        if any(word in str(error) for word in ("gloo", "NCCL", "monitoredBarrier")):
            raise SFPError(
                f"Another rank has ended ({reason}); read its last line, {again}."
            ) from error
        raise
