"""The steps of a preparation, one file each, whole or not at all: a second run does the rest."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sfp.datasets.layouts import Layout
from sfp.datasets.parallel import in_parallel
from sfp.errors import SFPError
from sfp.files import file_digest, sweep, whole_file
from sfp.progress import progress


@dataclass(frozen=True)
class Step:
    """Make ``target`` by ``make(target, *arguments)``, a function at the top of a module."""

    target: Path
    make: Callable[..., None]
    arguments: tuple = ()


@dataclass
class Plan:
    """A preparation's steps, how many images they bring, and the lists, which are written last."""

    steps: list[Step] = field(default_factory=list)
    images: int = 0
    lists: dict[Path, list[str]] = field(default_factory=dict)


def plan_pairs(
    layout: Layout,
    root: Path,
    names: list[str],
    images: tuple[Path, str],
    labels: tuple[Path, str],
    make: Callable[..., None],
    *arguments: object,
) -> Plan:
    """Link each image, and make each label from its source's file.

    Args:
        layout: of the dataset, whose folder is ``root``.
        root: that folder.
        names: of the images.
        images: folder and suffix of the source's images.
        labels: folder and suffix of the source's labels.
        make: makes a label by ``make(target, source, *arguments)``.
        arguments: for ``make``.

    Raises:
        SFPError: files of the source are missing.
    """
    plan = Plan(images=len(names), lists={root / layout.split: names} if layout.split else {})
    of_image = {name: images[0] / f"{name}{images[1]}" for name in names}
    of_label = {name: labels[0] / f"{name}{labels[1]}" for name in names}
    require_files(of_image.values(), "image")
    require_files(of_label.values(), "label")
    for name in names:
        plan.steps += [
            Step(layout.image(name, root), link_file, (of_image[name],)),
            Step(layout.label(name, root), make, (of_label[name], *arguments)),
        ]
    return plan


def record_sources(plan: Plan, root: Path, name: str) -> None:
    """Write ``.sources_<name>``: of each target in a dataset's folder the digest of what makes it.

    Datasets that share a folder share files, too, so that the records of all are compared.

    Raises:
        SFPError: a target is there that was made from another source, or nobody knows from which.
    """
    made: dict[str, str] = {}
    for file in root.glob(".sources_*"):
        try:
            made |= json.loads(file.read_text())
        except (ValueError, TypeError) as error:
            raise SFPError(
                f"{file}, which says what {root} was made of, is damaged ({error}); move the folder"
                " away, or give another --out."
            ) from error
    steps = progress(
        plan.steps, desc="reading the source", unit="file", disable=len(plan.steps) < 1000
    )
    now = {str(step.target.relative_to(root)): _digest(step) for step in steps}
    for step, (target, digest) in zip(plan.steps, now.items(), strict=True):
        if not step.target.exists() or made.get(target) == digest:
            continue
        if step.make is link_file and filecmp.cmp(step.target, *step.arguments, shallow=False):
            continue  # the source itself, or a tree of a release that kept no records
        raise SFPError(
            f"{step.target} is there already, made from another source than this; move {root} away,"
            " or give another --out."
        )
    if not now.items() <= made.items():
        with whole_file(root / f".sources_{name}") as partial:
            partial.write_text(json.dumps(now, indent=0) + "\n")


def _digest(step: Step) -> str:
    """SHA-256 of all that makes a target: the function and the contents of its arguments."""
    digest = hashlib.sha256(step.make.__name__.encode())
    for argument in step.arguments:
        if isinstance(argument, Path):
            digest.update(file_digest(argument, "sha256").encode())
        elif isinstance(argument, np.ndarray):
            digest.update(argument.tobytes())
        else:
            digest.update(repr(argument).encode())
    return digest.hexdigest()


def carry_out(plan: Plan, workers: int, description: str) -> None:
    """Do the steps whose targets are missing, then write the lists.

    Raises:
        SFPError: a fault in the source, or a list that is there with other names.
    """
    for path, names in plan.lists.items():
        if path.is_file() and sorted(path.read_text().split()) != sorted(names):
            raise SFPError(
                f"{path} lists other images than this source; move it away, or give another --out."
            )
    todo = [step for step in plan.steps if not step.target.exists()]
    for folder in {step.target.parent for step in plan.steps}:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    deque(in_parallel(_make, todo, workers, description), maxlen=0)
    for path, names in plan.lists.items():
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                partial.write_text("".join(f"{name}\n" for name in names))


def _make(step: Step) -> None:
    step.make(step.target, *step.arguments)


def link_file(target: Path, source: Path) -> None:
    """Hard-link a file that is used as it is; across file systems, where that fails, copy it.

    A hard link takes no space, and it outlives the source's folder, unlike a symbolic link.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        with whole_file(target) as partial:
            shutil.copyfile(source, partial)


def read_image(path: Path, modes: Sequence[str]) -> Image.Image:
    """An image of the source, decoded.

    Raises:
        SFPError: it can't be read, or has none of the modes (PIL's names).
    """
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise SFPError(f"The source's {path} can't be read ({error}); fetch it again.") from error
    if image.mode not in modes:
        raise SFPError(
            f"The source's {path} has pixels of mode {image.mode}, not {' or '.join(modes)}; take "
            "the owners' own file."
        )
    return image


def write_labels(target: Path, labels: np.ndarray) -> None:
    """Write labels (H, W), uint8 or uint16, without compression losses."""
    with whole_file(target) as partial:
        Image.fromarray(labels).save(partial)


def map_labels(target: Path, source: Path, table: tuple[int, ...], kind: str) -> None:
    """Convert an 8-bit label image by a table of 256 new labels, -1 for ids that there aren't.

    Raises:
        SFPError: an unreadable source, or such an id in it.
    """
    ids = np.asarray(read_image(source, ("L", "P")))
    lookup = np.asarray(table)
    unknown = np.unique(ids[lookup[ids] < 0])
    if unknown.size:
        raise SFPError(
            f"The source's {source} has the label {unknown[0]}, which is none of the {kind}; take "
            "the owners' own file."
        )
    write_labels(target, lookup[ids].astype(np.uint8))


def read_list(path: Path) -> list[str]:
    """The names in a list of the source, one on a line.

    Raises:
        SFPError: unreadable or empty.
    """
    try:
        names = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        message = f"The source's list {path} can't be read ({error}); fetch it again."
        raise SFPError(message) from error
    if not names:
        raise SFPError(f"The source's list {path} is empty; fetch it again.")
    return list(dict.fromkeys(names))


def require_files(paths: Iterable[Path], what: str) -> None:
    """Raises SFPError where files of the source are missing, with the first and how many."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SFPError(
            f"The source lacks the {what} {missing[0]}{more}; give --source all of the owners' "
            "files."
        )
