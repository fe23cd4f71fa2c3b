"""Exact counts of pixels per image and class, figures of them, and their store on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfp.errors import SFPError
from sfp.files import make_folder, unwritable, whole_file
from sfp.transfer import count_of_each, to_device

_HINT = "put that right and give the same command again, which goes on from there"


def count_image(
    prediction: Tensor, labels: Tensor, classes: int, ignore: int = 255, name: str = "an image"
) -> np.ndarray:
    """Pixels of each class in one image that are right, predicted, labelled: (3, K) int64. Ignored
    labels count nowhere.

    Args:
        prediction: (H, W) int.
        labels: (H, W) int.
        classes: K.
        ignore: label of pixels that are not evaluated.
        name: the label's file, for the error.

    Raises:
        SFPError: a label or a prediction that is no class, or two maps of different sizes.
    """
    found = count_pixels(prediction, labels, classes, ignore, name)
    return checked_counts(found.cpu(), prediction, labels, ignore, name)


def count_pixels(
    prediction: Tensor, labels: Tensor, classes: int, ignore: int = 255, name: str = "an image"
) -> Tensor:
    """``count_image`` on the prediction's device, without waiting for it, (3, K + 2) int64: after
    the classes what is none, and what counts nowhere.

    Raises:
        SFPError: two maps of different sizes.
    """
    if prediction.shape != labels.shape:
        sizes = f"{tuple(labels.shape)}, but its prediction {tuple(prediction.shape)}"
        raise SFPError(
            f"The label map {name} is {sizes}; check that image and label have one size."
        )
    labels, prediction = to_device(labels, prediction.device).long(), prediction.long()
    kept, none, nowhere = labels != ignore, classes, classes + 1

    def placed(values: Tensor) -> Tensor:
        return values.where((values >= 0) & (values < classes), none).where(kept, nowhere)

    labels, prediction = placed(labels), placed(prediction)
    rows = (labels.where(labels == prediction, nowhere), prediction, labels)
    return torch.stack([count_of_each(row, classes + 2) for row in rows])


def checked_counts(
    counts: Tensor, prediction: Tensor, labels: Tensor, ignore: int, name: str
) -> np.ndarray:
    """Counts (3, K) int64 of those of ``count_pixels`` on the CPU.

    Raises:
        SFPError: a label or a prediction of that image is no class.
    """
    classes = counts.shape[1] - 2
    if not counts[1:, classes].any():
        return counts[:, :classes].numpy()
    kept = labels != ignore
    labels, prediction = labels[kept], prediction.to(labels.device)[kept]
    for kind, values in (("label", labels), ("predicted class", prediction)):
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= classes):
            wrong = int(values.max()) if int(values.max()) >= classes else int(values.min())
            raise SFPError(
                f"{name} has the {kind} {wrong}, but there are {classes} classes (0 to "
                f"{classes - 1}); run sfp check."
            )
    raise AssertionError("counts of no class, but every label and prediction is one")


@dataclass(frozen=True)
class Figures:
    """What a set of images' counts comes to, in percent; as mmseg's ``IoUMetric`` defines it, but
    not rounded.

    Attributes:
        iou, acc: for each class (K,), NaN where undefined: absent from labels and predictions,
            or from labels.
        labelled: pixels of each class (K,).
        mIoU, mAcc: their means over defined classes. aAcc: share of right pixels.
        mIoU_present: mean IoU over the classes that the labels have.
    """

    iou: np.ndarray
    acc: np.ndarray
    labelled: np.ndarray
    mIoU: float
    mAcc: float
    aAcc: float
    mIoU_present: float

    @classmethod
    def of(cls, total: np.ndarray) -> Figures:
        """Figures of summed counts (3, K) int64.

        Raises:
            SFPError: they have no labelled pixel.
        """
        right, predicted, labelled = total
        if not labelled.any():
            raise SFPError(
                "No pixel is evaluated, since all labels are to be ignored; run"
                " sfp check on the data."
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = 100 * right / (predicted + labelled - right)
            acc = 100 * right / labelled
        return cls(
            iou,
            acc,
            labelled,
            mIoU=float(np.nanmean(iou)),
            mAcc=float(np.nanmean(acc)),
            aAcc=float(100 * right.sum() / labelled.sum()),
            mIoU_present=float(iou[labelled > 0].mean()),
        )


class CountStore:
    """Counts of finished images in a folder, one file of lines for each rank.

    Each line begins with a SHA-256 over itself and the run's provenance, so a line that is cut,
    damaged or of another run is known and dropped: its image is counted again. ``run.json`` beside
    them only serves to say what differs.

    Args:
        folder: where.
        provenance: what the counts depend on: config, weights, dataset, code. Strings by name.
        rank: whose file is written. All files in the folder are read.
    """

    def __init__(self, folder: Path, provenance: Mapping[str, str], rank: int = 0):
        self.folder, self.provenance, self.rank = Path(folder), dict(provenance), rank
        self._seal = hashlib.sha256(json.dumps(self.provenance, sort_keys=True).encode())
        self._file = None

    def read(self, classes: int) -> dict[str, np.ndarray]:
        """Counts (3, K) of finished images by name.

        Raises:
            SFPError: they belong to another run, which says what differs; or they can't be read.
        """
        try:
            left = self._read_provenance()
            changed = [key for key, own in self.provenance.items() if left.get(key) != own]
            changed = changed if left else []
            if changed:
                raise SFPError(
                    f"The interrupted run in {self.folder.parent} had another"
                    f" {' and '.join(changed)}; start it afresh with --fresh,"
                    " or choose another --work-dir."
                )
            lines = [
                line
                for file in sorted(self.folder.glob("rank*.jsonl"))
                for line in file.read_bytes().split(b"\n")
            ]
        except OSError as error:
            raise SFPError(
                f"The interrupted run in {self.folder.parent} can't be read ({error});"
                " choose another --work-dir."
            ) from error
        found: dict[str, np.ndarray] = {}
        for line in lines:
            proof, _, content = line.partition(b" ")
            if proof != self._proof(content):
                continue
            name, columns = json.loads(content)
            found[name] = np.zeros((3, classes), np.int64)
            for number, *values in columns:
                found[name][:, number] = values
        return found

    def _proof(self, content: bytes) -> bytes:
        digest = self._seal.copy()
        digest.update(content)
        return digest.hexdigest()[:16].encode()

    def _read_provenance(self) -> dict[str, Any]:
        """What the counts in the folder depend on; nothing where it is missing or damaged."""
        try:
            left = json.loads((self.folder / "run.json").read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):  # the last of many brackets
            return {}
        return left if isinstance(left, dict) else {}

    def add(self, name: str, counts: np.ndarray) -> None:
        """Keep the counts (3, K) of a finished image.

        Raises:
            SFPError: they can't be written; those written before stay good.
        """
        columns = [[int(k), *map(int, counts[:, k])] for k in np.flatnonzero(counts.any(0))]
        content = json.dumps([name, columns], separators=(",", ":")).encode()
        file = self.folder / f"rank{self.rank}.jsonl"
        if self._file is None:
            self._open(file)
        line = self._proof(content) + b" " + content + b"\n"
        try:
            while line:  # unbuffered: one write, unless the disk is full
                line = line[self._file.write(line) :]
        except OSError as error:
            raise unwritable(file, error, _HINT) from error

    def _open(self, file: Path) -> None:
        make_folder(self.folder, _HINT)
        try:
            if self._read_provenance() != self.provenance:
                with whole_file(self.folder / "run.json", _HINT) as partial:
                    partial.write_text(json.dumps(self.provenance, indent=1) + "\n")
            cut = file.is_file() and file.read_bytes()[-1:] not in (b"", b"\n")
            self._file = file.open("ab", buffering=0)
            if cut:
                self._file.write(b"\n")
        except OSError as error:
            raise unwritable(file, error, _HINT) from error

    def clear(self) -> None:
        """Forget everything."""
        self.close()
        for file in (*self.folder.glob("rank*.jsonl"), self.folder / "run.json"):
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def sum_counts(parts: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Sum of counts (3, K) int64."""
    total = np.zeros((3, classes), np.int64)
    for part in parts:
        total += part
    return total


def as_json(figures: Figures, names: Sequence[str]) -> dict[str, Any]:
    """Figures for ``results.json``; NaN becomes null. ``absent`` names classes without a label."""
    by_class = {
        name: None if np.isnan(iou) else float(iou)
        for name, iou in zip(names, figures.iou, strict=True)
    }
    means = {key: getattr(figures, key) for key in ("mIoU", "aAcc", "mAcc", "mIoU_present")}
    return {**means, "IoU_per_class": by_class, "absent": absent(figures, names)}


def absent(figures: Figures, names: Sequence[str]) -> list[str]:
    """The classes that no label has, though mIoU counts those of them that are predicted."""
    return [name for name, pixels in zip(names, figures.labelled, strict=True) if not pixels]
