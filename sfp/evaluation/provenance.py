"""Where a figure comes from.

Hashes of config, names, weights, dataset, code; and ``results.json``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset

from sfp.backbones import backbone_file
from sfp.clip.clip import FrozenCLIP
from sfp.clip.loading import weights_file
from sfp.clip.prompts import prompts_sha256
from sfp.errors import SFPError
from sfp.evaluation.config import dataset_options, read_protocol
from sfp.evaluation.counts import Figures, as_json
from sfp.evaluation.dataset import short_name, short_side_of
from sfp.evaluation.loop import Part
from sfp.files import file_sha256, whole_file
from sfp.methods import METHODS, Method, list_methods
from sfp.options import parse_spec
from sfp.pipeline import Vocabulary
from sfp.refiners import REFINERS
from sfp.regions import masks_on_disk
from sfp.segmentor import SFPSegmentor

_PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "mmengine", "mmcv-lite", "mmcv",
    "onedl-mmsegmentation", "mmsegmentation", "numpy",
)  # fmt: skip


def run_provenance(cfg: Config, model: SFPSegmentor, part: Part) -> dict[str, str]:
    """What a run's counts depend on, by name: config, names, weights, dataset, code, device."""
    method, frozen = model.pipeline.method, model.frozen
    matmul = torch.get_float32_matmul_precision()
    backbones = {**method.backbones, **part.task.protocol.backbones}
    further = {name: backbone.fingerprint for name, backbone in backbones.items()}
    return {
        "config": config_hash(cfg),
        "names": _sha256(part.task.text.words, part.task.text.class_of_query),
        "weights": json.dumps(_weights_of(frozen)),
        "backbones": json.dumps(further, sort_keys=True),
        "dataset": dataset_fingerprint(part.dataset),
        "code": code_fingerprint(*_classes(method.name, method.options())),
        "device": f"{frozen.device.type} {frozen.precision} {matmul}",
    }


def _weights_of(frozen: FrozenCLIP) -> dict[str, Any]:
    """The weights' hash, and how they are used."""
    pixels = dict(pixel_mean=list(frozen.pixel_mean), pixel_std=list(frozen.pixel_std))
    return {"weights_sha256": frozen.fingerprint, "quick_gelu": frozen.quick_gelu, **pixels}


def finished_as(cfg: Config, dataset_sha256: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a ``results.json`` says if it is of this config, dataset, code, and these files of
    weights.
    """
    return {
        "config_sha256": config_hash(cfg),
        "dataset_fingerprint": dataset_sha256,
        "code_sha256": code_fingerprint(*_classes(cfg.model.method, cfg.model)),
        "names_sha256": _sha256(vocabulary.queries, vocabulary.class_of_query),
        "weight_files": weight_files(cfg),
    }


def write_results(
    path: Path,
    cfg: Config,
    model: SFPSegmentor,
    part: Part,
    figures: Figures,
    provenance: Mapping[str, str],
    seconds: float,
    shared_with: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``results.json`` whole: the figures, and the whole protocol that they hold for.

    Args:
        figures: of the part, over all ranks.
        seconds: of this process; images that an interrupted run had done are not in it.
        shared_with: further datasets of the same pass of the images, whose seconds these are, too.

    Returns:
        What was written. Metrics are percentages.
    """
    frozen, method, bank = model.frozen, model.pipeline.method, model.pipeline.text_bank
    text, purifier = part.task.text, method.purifier
    words: list[list[str]] = [[] for _ in range(text.class_of_query[-1] + 1)]
    for word, place in zip(text.words, text.class_of_query, strict=True):
        words[place].append(word)
    packages = {name: found for name in _PACKAGES if (found := _version(name))}
    result = {
        "method": method.name,
        "options": method.options(),
        "changed_options": _changed_options(method, dataset_options(cfg)),
        "purify": purifier is not None,
        "pm": purifier.detector.name if purifier else None,
        "purifier": repr(purifier.detector) if purifier else None,
        "registers": method.appended and method.appended.as_dict(),
        "backbone": frozen.name,
        "pretrained": frozen.pretrained,
        **_weights_of(frozen),
        "weight_files": weight_files(cfg),
        "backbones": json.loads(provenance["backbones"]),
        "precision": frozen.precision,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "device": str(frozen.device),
        "dataset": type(part.dataset).__name__,
        **as_json(figures, part.classes),
        "images": len(part.chosen),
        "seconds": round(seconds, 2),
        "images_resumed": part.resumed,
        "shared_with": list(shared_with),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": {**part.task.protocol.as_dict(), "short_side": short_side_of(part.dataset)},
        "names": words,
        "names_sha256": provenance["names"],
        "prompts": len(bank.prompts),
        "prompts_sha256": prompts_sha256(bank.prompts),
        "dataset_fingerprint": provenance["dataset"],
        "code_sha256": provenance["code"],
        "versions": {"python": platform.python_version(), **packages, "sfp": _version("sfp")},
        "config_sha256": provenance["config"],
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    return result


def keep_other(path: Path, config_sha256: str) -> Path | None:
    """Give the ``results.json`` of a run of another config a name of its own, so that the next one
    doesn't replace it.

    Returns:
        Its new path, in the same folder; None where there was none, or none that can be read.
    """
    try:
        before = json.loads(path.read_text())
        method, sha256 = str(before["method"]), str(before["config_sha256"])
    except (OSError, ValueError, KeyError, TypeError):  # no figure that could be lost
        return None
    if sha256 == config_sha256:
        return None
    name = re.sub(r"[^\w.+-]", "-", f"{path.stem}_{method}_{sha256[:8]}{path.suffix}")
    return path.replace(path.with_name(name))


def dataset_fingerprint(
    dataset: BaseSegDataset, files: Sequence[str] = ("img_path", "seg_map_path")
) -> str:
    """SHA-256 over an mmseg dataset.

    Of the short names of all images and labels (or one of them) in their order, the images' sizes
    in
    bytes, and the labels' contents. An image that changes without changing its size in bytes is not
    noticed: to read all images would take as long as a fast evaluation.

    Raises:
        SFPError: a file is missing, or two images have one short name, by which counts know them.
    """
    digest = hashlib.sha256()
    paths: dict[str, str] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        other = paths.setdefault(short_name(info["img_path"]), info["img_path"])
        if len(paths) <= index:
            raise SFPError(
                f"{type(dataset).__name__} has two images of one name, {other} and"
                f" {info['img_path']}; list each once, or rename a folder."
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
                    f"{path} of {type(dataset).__name__} is missing; check img_suffix"
                    " and seg_map_suffix, or run sfp check on the data."
                ) from error
    return digest.hexdigest()


def _changed_options(method: Method, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not as published: those of the dataset are the ones its authors chose."""
    values = method.options()
    changed = {**method.changed_options(), **{name: values.get(name) for name in chosen}}
    return {
        name: value
        for name, value in changed.items()
        if name not in chosen or json.dumps(value) != json.dumps(chosen[name])
    }


def _with_bases(name: str, given: Mapping[str, Any]) -> list[tuple[type, dict[str, Any]]]:
    """The class and the options of a method, and those of its base where it has one."""
    options = {**METHODS.options(name), **given}
    base = options.get("base")
    return [(METHODS.get(name), options), *(_with_bases(*parse_spec(base)) if base else [])]


def _classes(name: str, options: Mapping[str, Any]) -> list[type]:
    return [cls for cls, _ in _with_bases(name, options)]


def code_fingerprint(*methods: type) -> str:
    """SHA-256 over the code that makes a method's figures, without comments and docstrings.

    Its own files, and the folders that it uses. Other methods' files take no part, so that work on
    one leaves the results of others valid.
    """
    package = Path(__file__).parent.parent
    classes = {cls for method in methods for cls in method.__mro__ if issubclass(cls, Method)}
    own = {Path(inspect.getsourcefile(cls)) for cls in classes}
    others = {Path(inspect.getsourcefile(METHODS.get(name))) for name in list_methods()} - own
    folders = ("backbones", "clip", "outliers", "methods", "refiners", "regions", "pipeline")
    used = {file for folder in folders for file in (package / folder).rglob("*.py")}
    used |= own | {package / name for name in ("evaluation/counts.py", "segmentor.py", "stages.py")}
    digest = hashlib.sha256()
    for file in sorted(used - others):
        digest.update(file.name.encode() + b"\0" + _code_alone(file).encode())
    return digest.hexdigest()


@functools.cache  # what runs is what the process imported, whatever becomes of the file
def _code_alone(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            del body[0]
    return ast.dump(tree)


def weight_files(cfg: Config) -> dict[str, str]:
    """SHA-256 of the files on this machine that a config's ``model`` means: weights of its ``clip``
    and of each second model by the method's or the refiner's option for it; neurons, rankings and
    sentences by the keys that name them.

    What is not here, because it would be downloaded first, is left out.
    """
    model = cfg.model
    named = model.get("weights") or model.get("pretrained")
    files = {"clip": weights_file(model.clip, named)} if named else {}
    masks: dict[str, str] = {}
    users = [("", options) for _, options in _with_bases(model.method, model)]
    for name, given in map(parse_spec, read_protocol(model).refine):
        users.append((f"{name}.", {**REFINERS.options(name), **given}))
    for user, options in users:
        masks |= masks_on_disk(options["masks"]) if "masks" in options else {}
        for key in [key for key in options if f"{key}_weights" in options]:
            files[user + key] = backbone_file(options[key], options[f"{key}_weights"])
    for key, value in model.items():
        if isinstance(value, str) and value.endswith(".json"):
            path = Path(value).expanduser()
            files[key] = path if path.is_file() else None
    return {key: file_sha256(file) for key, file in files.items() if file} | masks


def config_hash(cfg: Config) -> str:
    """SHA-256 of a config as read and overridden, wherever its folder lies."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    folder = os.path.dirname(os.path.abspath(cfg.filename))
    return hashlib.sha256(text.replace(folder, ".").encode()).hexdigest()


def _sha256(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
