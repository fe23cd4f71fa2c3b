"""A model with all that belongs to it in one place: a folder, or a repository of Hugging Face.

open_clip's have ``open_clip_config.json`` beside the weights, transformers' ``config.json``; both
may have a tokenizer's files and the mean and deviation of the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfp.errors import SFPError
from sfp.network import cached_hub_file, hub, hub_file, why_unreached

HUB, FOLDER = "hf-hub:", "local-dir:"
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_ADVICE = (
    "bring its files (weights, config, tokenizer) into a folder from elsewhere and give that folder"
    " as pretrained (config: model.pretrained)"
)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Package:
    """What lies in one place.

    Attributes:
        name: the folder's or the repository's.
        weights: the file.
        config: open_clip's config of the model, None without ``open_clip_config.json``.
        hugging_face: the contents of transformers' ``config.json``, None without.
        pixels: mean and deviation, None where nothing says them.
        tokenizer: where the tokenizer's files lie: a folder, or the repository; None without.
    """

    name: str
    weights: Path
    config: dict[str, Any] | None
    hugging_face: dict[str, Any] | None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None
    tokenizer: str | None


def is_package(name: str) -> bool:
    """Whether a text names a folder or a repository."""
    return name.startswith((HUB, FOLDER)) or Path(name).expanduser().is_dir()


def open_package(name: str) -> Package:
    """The package of ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER`` or a folder.

    Files of a repository are fetched where they are not in the hub's cache.

    Raises:
        SFPError: no such folder or repository, no network, no weights, or a damaged config.
    """
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        return _package(name, _fetcher(repository), repository)
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if not folder.is_dir():
        raise SFPError(f"There is no folder {folder}; give one with weights and their config.")

    def find(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    return _package(str(folder), find, str(folder))


def cached_weights(name: str) -> Path | None:
    """The weights of a package as far as they are on this machine."""
    if not name.startswith(HUB):
        folder = Path(name.removeprefix(FOLDER)).expanduser()
        found = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
    else:
        kept = [cached_hub_file(name.removeprefix(HUB), file) for file in _WEIGHTS]
        found = [path for path in kept if path]
    return found[0] if found else None


def _package(name: str, find: Callable[[str], Path | None], source: str) -> Package:
    of_open_clip, config = _json(find("open_clip_config.json")), None
    if of_open_clip is not None:
        config = of_open_clip.get("model_cfg", of_open_clip)
        if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(
            config
        ):
            raise SFPError(
                f"The open_clip_config.json of {name} has no model_cfg with embed_dim, vision_cfg"
                " and text_cfg; get a sound copy."
            )
    hugging_face = None if config else _json(find("config.json"))
    weights = next(filter(None, map(find, _WEIGHTS)), None)
    if weights is None:
        if find("model.safetensors.index.json"):
            raise SFPError(
                f"The weights of {name} are in several files; save them as one model.safetensors."
            )
        raise SFPError(
            f"{name} has no weights ({', '.join(_WEIGHTS)}); give a folder or repository that has."
        )
    preprocessing = (of_open_clip or {}).get("preprocess_cfg") or {}
    pixels = _pixels(preprocessing.get("mean"), preprocessing.get("std"))
    if pixels is None and (images := _json(find("preprocessor_config.json"))):
        pixels = _pixels(images.get("image_mean"), images.get("image_std"))
    tokenizer = source if any(find(file) for file in _TOKENIZER) else None
    return Package(name, weights, config, hugging_face, pixels, tokenizer)


def _pixels(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _json(path: Path | None) -> dict[str, Any] | None:
    """The contents of a JSON file, None without one.

    Raises:
        SFPError: it is none.
    """
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SFPError(f"{path} can't be read as JSON ({error}); get a sound copy.") from error
    if not isinstance(found, Mapping):
        raise SFPError(f"{path} holds a {type(found).__name__}, no object; get a sound copy.")
    return dict(found)


def _fetcher(repository: str) -> Callable[[str], Path | None]:
    """A function that finds a repository's file, in the cache or on the hub; None without it."""
    unreached: list[str | None] = []  # asked for once

    def find(file: str) -> Path | None:
        if not cached_hub_file(repository, file):
            if not unreached:
                unreached.append(why_unreached(hub()))
            if unreached[0]:
                return _refused_offline(repository, unreached[0])
        what = f"The files of hf-hub:{repository}"
        return hub_file(repository, file, what, f"check the name, or {_ADVICE}")

    return find


def _refused_offline(repository: str, why: str) -> None:
    """None for a file that the package can do without; raises SFPError where nothing of it lies
    here.
    """
    if not any(cached_hub_file(repository, weights) for weights in _WEIGHTS):
        raise SFPError(
            f"The model hf-hub:{repository} is not on this machine and {why}; {_ADVICE}."
        )
