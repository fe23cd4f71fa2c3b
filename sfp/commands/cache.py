"""See and clear what is kept for later: text vectors, masks, downloads, compiled code.

sfp cache
sfp cache --clear text
sfp cache --clear all

Without --clear nothing is deleted. Prepared datasets and results are no caches and stay.
"""

from __future__ import annotations

import argparse
import getpass
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfp.errors import SFPError, run_command
from sfp.files import sweep


@dataclass(frozen=True)
class Cache:
    """A cache: what it is for, where it lies, and which files there are its own."""

    name: str
    purpose: str
    folder: Path
    files: Callable[[Path], list[Path]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sfp cache", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--clear", nargs="+", choices=["text", "masks", "downloads", "compiled", "all"], default=[],
        help="delete these caches; all leaves out compiled, which other programs share",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SFP_DATA", "data")), help="the data root"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(show_and_clear, parser.parse_args(arguments))


def show_and_clear(args: argparse.Namespace) -> None:
    """List the caches; delete the files of those named.

    Raises:
        SFPError: a file can't be deleted.
    """
    for cache in caches(args.data):
        found = cache.files(cache.folder) if cache.folder.is_dir() else []
        size = sum(path.stat().st_size for path in found if path.is_file())
        print(
            f"{cache.name:10} {len(found):6d} files {size / 2**20:9.1f} MiB  {cache.folder}  "
            f"({cache.purpose})"
        )
        if cache.name not in args.clear and (cache.name == "compiled" or "all" not in args.clear):
            continue
        for path in found:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise SFPError(
                    f"{path} can't be deleted ({error.strerror}); ask its owner."
                ) from error
        if cache.name in ("text", "masks") and cache.folder.is_dir():
            sweep(cache.folder)
        print(f"{'':10} cleared")


def caches(data: Path) -> list[Cache]:
    """All caches. Files of other programs in the same folders are never among theirs."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from sfp.clip.text_bank import cache_bound, default_cache_dir, text_files
    from sfp.regions import mask_files

    compiled = Path(
        os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR",
            Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}",
        )
    )
    return [
        Cache(
            "text",
            f"vectors of names; at most {cache_bound() >> 20} MiB",
            default_cache_dir() / "text",
            text_files,
        ),
        Cache(
            "masks",
            "region masks of pictures; as many as are made",
            default_cache_dir() / "masks",
            mask_files,
        ),
        Cache("downloads", "OpenAI's CLIP weights", Path("~/.cache/clip").expanduser(), clip_files),
        Cache(
            "downloads",
            "other CLIP and timm weights from Hugging Face",
            Path(HF_HUB_CACHE),
            hub_files,
        ),
        Cache(
            "downloads",
            "datasets' archives, no longer needed once prepared",
            data / "downloads",
            archive_files,
        ),
        Cache("compiled", "torch.compile's code, shared with other programs", compiled, every_file),
    ]


def clip_files(folder: Path) -> list[Path]:
    """OpenAI's weights that open_clip knows by address."""
    import open_clip

    known = {
        Path(open_clip.get_pretrained_url(model, "openai") or "").name
        for model in open_clip.list_pretrained_models_by_tag("openai")
    }
    return [folder / name for name in sorted(known - {""}) if (folder / name).is_file()]


def hub_files(folder: Path) -> list[Path]:
    """All files of the repositories that hold open_clip's weights, or timm's."""
    import open_clip

    repositories = {"timm"}  # an owner: all of its repositories
    for model, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(model, tag) or {}
        repositories.add(entry.get("hf_hub", "").rstrip("/"))
    own = {f"models--{name.replace('/', '--')}" for name in repositories if name}
    kept = [
        place
        for place in sorted(folder.glob("models--*"))
        if place.name in own or place.name.startswith("models--timm--")
    ]
    return [path for place in kept for path in every_file(place)]


def archive_files(folder: Path) -> list[Path]:
    """The archives that ``sfp prepare --download`` fetches, whole or begun, and locks."""
    from sfp.datasets.preparation import RECIPES

    names = {archive.name for recipe in RECIPES.values() for archive in recipe.archives}
    kinds = [
        folder / kind.format(name)
        for name in sorted(names)
        for kind in ("{}", "{}.partial", ".{}.lock", ".{}.lock.by")
    ]
    return [path for path in kinds if path.is_file()]


def every_file(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()]
