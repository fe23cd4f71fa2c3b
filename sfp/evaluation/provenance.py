"""Where a figure comes from: hashes of config, names, weights, dataset and code, and ``results.json``."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset

from sfp.errors import SFPError
from sfp.evaluation.counts import as_json
from sfp.evaluation.dataset import short_name, short_side_of
from sfp.evaluation.metric import ClassIoUMetric
from sfp.files import whole_file
from sfp.methods import METHODS, Method, list_methods
from sfp.pipeline import Task, Vocabulary
from sfp.segmentor import SFPSegmentor

_PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "mmengine",
    "mmcv-lite",
    "mmcv",
    "onedl-mmsegmentation",
    "mmsegmentation",
    "numpy",
)


def run_card(
    config_sha256: str, model: SFPSegmentor, task: Task, dataset: BaseSegDataset
) -> dict[str, str]:
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
        "versions": {
            "python": platform.python_version(),
            **{p: v for p in _PACKAGES if (v := _version(p))},
            "sfp": _version("sfp"),
        },
        "config_sha256": card["config"],
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    return result


def dataset_fingerprint(
    dataset: BaseSegDataset, files: Sequence[str] = ("img_path", "seg_map_path")
) -> str:
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
                raise SFPError(
                    f"{path} of {type(dataset).__name__} is missing; run tools/check_dataset.py on the data."
                ) from error
    return digest.hexdigest()


def code_fingerprint(method: type) -> str:
    """SHA-256 over the code that makes a method's figures, without comments and docstrings: its own files, and the rooms that it uses.

    Other methods' files take no part, so that work on one leaves the results of others valid.
    """
    package = Path(__file__).parent.parent
    own = {Path(inspect.getsourcefile(cls)) for cls in method.__mro__ if issubclass(cls, Method)}
    others = {Path(inspect.getsourcefile(METHODS.get(name))) for name in list_methods()} - own
    rooms = (
        file
        for room in ("clip", "outliers", "methods", "pipeline")
        for file in (package / room).rglob("*.py")
    )
    digest = hashlib.sha256()
    for file in sorted(
        {*rooms, *own, package / "evaluation/counts.py", package / "segmentor.py"} - others
    ):
        digest.update(
            file.name.encode() + b"\0" + _code_alone(file.read_text(encoding="utf-8")).encode()
        )
    return digest.hexdigest()


def _code_alone(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree)


def names_hash(vocabulary: Vocabulary) -> str:
    """SHA-256 over the classes and their query words."""
    return hashlib.sha256(json.dumps(vocabulary.words).encode()).hexdigest()


def config_hash(cfg: Config) -> str:
    """SHA-256 of a config as read and overridden, wherever its folder lies."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str).replace(
        os.path.dirname(os.path.abspath(cfg.filename)), "."
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
