"""Weights that open_clip names: what it says of them, and the files where they lie.

An entry is what open_clip says of one tag's weights: ``url`` or ``hf_hub``, ``quick_gelu``,
``mean`` and ``std``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from sfp.clip.built_in import BUILT_IN
from sfp.errors import SFPError, unknown_choice
from sfp.files import file_sha256, make_folder
from sfp.network import (
    cached_hub_file,
    difference,
    download,
    hub_file,
    require_published,
    url_sha256,
)

QUICK = "-quickgelu"  # the end of open_clip's names of models that were trained with QuickGELU


def entry_of(model: str, tag: str) -> dict[str, Any]:
    """open_clip's entry of a model and a tag that it has, none of the keys missing."""
    import open_clip

    from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD

    by_config = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    usual = dict(url="", hf_hub="", quick_gelu=by_config, mean=PIXEL_MEAN, std=PIXEL_STD)
    return usual | open_clip.get_pretrained_cfg(model, tag)


def entry_of_tag(architecture: str, tag: str) -> dict[str, Any]:
    """The entry of a tag for a model, with or without ``-quickgelu`` in its name.

    Raises:
        SFPError: unknown tag.
    """
    import open_clip

    if architecture in BUILT_IN:
        raise SFPError(
            f"The {architecture} model has no weights {tag!r}; leave pretrained out, "
            "or give the path of a checkpoint."
        )
    plain = architecture.removesuffix(QUICK)
    tags = {
        known: name
        for name in (plain + QUICK, plain)
        for known in open_clip.list_pretrained_tags_by_model(name)
    }
    if not tags:
        raise SFPError(
            f"open_clip has no weights of {plain}; give the path of a checkpoint as pretrained"
            " (config: model.pretrained)."
        )
    if tag not in tags:
        raise unknown_choice(f"weights for {plain}", tag, sorted(tags))
    return entry_of(tags[tag], tag)


def entry_of_file(path: Path) -> dict[str, Any]:
    """The entry of the weights in a file by the SHA-256 in its address, else empty.

    Names and folders of files mean nothing.
    """
    import open_clip

    digest = file_sha256(path)
    for entry in (entry_of(*pair) for pair in open_clip.list_pretrained()):
        if (published := url_sha256(entry["url"])) and digest.startswith(published):
            return entry
    return {}


def pixels_of(entry: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels."""
    return tuple(entry["mean"]), tuple(entry["std"])


def fetched_file(entry: Mapping[str, Any], what: str) -> Path:
    """The file of an entry's weights, from its cache or the network, verified.

    Args:
        what: of it is wanted, as a sentence's subject in the plural, such as "The weights".

    Raises:
        SFPError: they can't be had, or are not the published ones.
    """
    path, advice = cached_file(entry), offline_hint(entry)
    if path is None and entry["hf_hub"]:
        repository, names = hub_names(entry)
        for name in names:
            path = path or hub_file(repository, name, what, advice)
        if path is None:
            raise SFPError(f"{repository} on Hugging Face has no {' or '.join(names)}; {advice}.")
    elif path is None:
        path, url = _own_folder(entry), entry["url"]
        with FileLock(f"{make_folder(path.parent) / path.name}.lock"):
            if not path.is_file():  # another process may have fetched it
                download(url, path, lambda file: difference(file, url_sha256(url)), advice)
    require_published(path, entry["url"])
    return path


def cached_file(entry: Mapping[str, Any]) -> Path | None:
    """Where the weights lie already: Hugging Face's cache or open_clip's folder."""
    repository, names = hub_names(entry)
    for name in names if repository else []:
        if found := cached_hub_file(repository, name):
            return found
    local = _own_folder(entry)
    return local if local.is_file() else None


def hub_names(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The repository on Hugging Face and which files it may have, the best first."""
    repository, _, file = entry["hf_hub"].rpartition("/")
    if file:
        return repository, [f"{Path(file).stem}.safetensors", file]
    return repository, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


def _own_folder(entry: Mapping[str, Any]) -> Path:
    """Where open_clip puts what doesn't come from Hugging Face."""
    return Path("~/.cache/clip").expanduser() / Path(entry["url"]).name


def offline_hint(entry: Mapping[str, Any]) -> str:
    """What to do where the weights can't be fetched, as a sentence's part."""
    from sfp.clip.clip import PIXEL_MEAN

    names = [Path(entry["url"]).name] if entry["url"] else []
    if entry["hf_hub"]:
        repository = entry["hf_hub"].rstrip("/")
        names.append(f"open_clip_model.safetensors of {repository} on Hugging Face")
    mean, std = map(list, pixels_of(entry))
    pixels = "" if mean == list(PIXEL_MEAN) else f", pixel_mean={mean} and pixel_std={std}"
    return (
        f"bring the file {' or '.join(names)} from elsewhere and pass its path as pretrained "
        f"(config: model.pretrained, command: --pretrained) with quick_gelu={entry['quick_gelu']}"
        f"{pixels} (command: --{'' if entry['quick_gelu'] else 'no-'}quick-gelu), or use the "
        "built-in Toyland model, which needs no download (model='Toyland'; "
        "config: configs/cfg_toyland.py)"
    )
