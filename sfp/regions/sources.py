"""Where masks come from: files, a callable, or a program whose masks are kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from sfp.clip.clip import FrozenCLIP
from sfp.clip.text_bank import default_cache_dir
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.files import file_sha256, make_folder, whole_file
from sfp.options import parse_spec
from sfp.regions._program import PROGRAMS, MaskProgram
from sfp.regions.regions import Regions
from sfp.stages import Picture

ENDINGS = (".png", ".npz", ".pth")
_KINDS = "a folder of PNG maps, .npz or .pth stacks, a COCO JSON file, or the name of a program"


class MaskSource(nn.Module):
    """Masks of pictures, at their original size.

    Attributes:
        fingerprint: what the masks depend on besides the picture; part of a run's provenance.
    """

    fingerprint: str

    def forward(self, picture: Picture) -> Regions:
        """The masks of a picture.

        Where only its tensor is known, at that tensor's size.

        Raises:
            SFPError: there are none of this picture, they are empty or of another size, or can't
                be read or made.
        """
        found, where = self.find(picture)
        size = _size_of(picture)
        if found.size != size:
            raise SFPError(
                f"{where} has masks of {found.size[1]}x{found.size[0]} pixels, the image"
                f" {picture.path or 'given'} has {size[1]}x{size[0]}; give masks of that image, at"
                " its own size."
            )
        return found

    def find(self, picture: Picture) -> tuple[Regions, str]:
        """The masks, and where they are from."""
        raise NotImplementedError


class GivenMasks(MaskSource):
    """Masks of a folder, a COCO file, or a callable.

    Args:
        source: a folder of files named as the images are, ``photo.png`` for ``photo.jpg``, in the
            images' subfolders or all in one: a grey or palette PNG, whose pixels are the numbers
            of regions, 0 for none; or a stack of masks (M, H, W) in order, as "masks" of an
            ``.npz`` or as the tensor of a ``.pth`` file. Or a COCO JSON file, whose images are
            known by their files' names. Or a callable from a ``Picture`` to a stack (M, H, W), a
            map (H, W) or ``Regions``.

    Raises:
        SFPError: there is no such folder or file, or it is no COCO file.
    """

    def __init__(self, source: str | os.PathLike | Callable[[Picture], Any]):
        super().__init__()
        self.source = source
        if callable(source):
            return
        self.source = _existing(source)
        if self.source.suffix == ".json":
            self.images, self.runs = _read_coco(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names and contents; of a callable its name."""
        if callable(self.source):
            return getattr(self.source, "__qualname__", repr(self.source))
        return _digest_of(self.source)

    def find(self, picture: Picture) -> tuple[Regions, str]:
        if callable(self.source):
            found, where = self.source(picture), f"The masks of {self.fingerprint}"
            found = found if isinstance(found, Regions) else _of_array(found, where)
            return _require_masks(found, where), where
        if not picture.path:
            raise SFPError(
                f"The masks in {self.source} are found by the image's file, and this image has"
                " none; give the image's path, or masks as a callable."
            )
        path = Path(picture.path)
        if self.source.suffix == ".json":
            where = f"{self.source} for {path.name}"
            return _require_masks(self._of_coco(path), where), where
        for place in _places(path):
            for ending in ENDINGS:
                file = self.source / place.parent / f"{place.name}{ending}"
                if file.is_file():
                    return _require_masks(_read_masks(file), str(file)), str(file)
        endings = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise SFPError(
            f"{self.source} has no masks of {path}; put {path.stem} with the ending {endings}"
            " there, or make them with tools/make_masks.py."
        )

    def _of_coco(self, path: Path) -> Regions:
        """Raises SFPError where the COCO file has no such image, or a mask of it can't be read."""
        for name in ("/".join(path.parts[-n:]) for n in range(len(path.parts), 0, -1)):
            if name in self.images:
                break
        else:
            raise SFPError(
                f"{self.source} has no image {path.name} among its {len(self.images)}; give the"
                " COCO file of these images."
            )
        number, height, width = self.images[name]
        try:
            runs = [_coco_runs(one, height, width) for one in self.runs.get(number, ())]
        except Exception as error:  # pycocotools raises what it stumbles on
            raise SFPError(
                f"A mask of image {name} in {self.source} can't be read ({error}); give polygons or"
                " run lengths."
            ) from error
        return Regions.of_runs((height, width), runs)


class MadeMasks(MaskSource):
    """Masks of a program, kept on disk by the picture's pixels, the model and the settings.

    They lie in ``masks`` of ``default_cache_dir()``. Where of a picture only its tensor is known,
    they are made of that, and not kept.

    Args:
        program: what makes them.
    """

    def __init__(self, program: MaskProgram):
        super().__init__()
        self.program, self.network = program, program.network

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.program.settings.encode()).hexdigest()

    def find(self, picture: Picture) -> tuple[Regions, str]:
        where = f"The program {self.program.name}"
        if picture.pixels is None and not picture.path:
            return self.program(self.program.clip.pixels(picture.image)), where
        pixels = picture.original()
        file = self.file_of(pixels)
        found = _read_kept(file)
        if found is None or found.size != pixels.shape[:2]:
            found = self.program(pixels)
            if self.program.keeps:
                advice = "set SFP_CACHE to a folder that can"
                make_folder(file.parent, advice)
                with whole_file(file, advice) as partial:
                    partial.write_bytes(found.to_bytes())
        return found, where

    def is_kept(self, picture: Picture) -> bool:
        """Whether the masks of a picture lie on disk."""
        return _read_kept(self.file_of(picture.original())) is not None

    def file_of(self, pixels: np.ndarray) -> Path:
        """Where the masks of a picture (H, W, 3) lie, or would."""
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return default_cache_dir() / "masks" / self.fingerprint[:16] / f"{digest}.npz"


def load_masks(
    masks: str | os.PathLike | Mapping[str, Any] | Callable[[Picture], Any], clip: FrozenCLIP
) -> MaskSource:
    """Where masks come from: what a method's option ``masks`` names.

    Args:
        masks: a folder, a COCO JSON file or a callable, see ``GivenMasks``; or a program, one of
            ``list_mask_programs()``, as ``NAME``, ``NAME:OPTION=VALUE`` or ``dict(type=NAME,
            OPTION=VALUE)``.
        clip: on whose device and in whose precision a program runs.

    Raises:
        SFPError: no such folder, file or program, a wrong option, or a model that can't be had.
    """
    program = _program_of(masks)
    if program is None:
        return GivenMasks(masks)
    name, options = program
    PROGRAMS.check_options(name, options)
    return MadeMasks(PROGRAMS.get(name)(clip, **options))


def check_masks(masks: Any) -> None:
    """Raises SFPError where an option ``masks`` names nothing, or wrong options, before anything is
    loaded.
    """
    program = _program_of(masks)
    if program is not None:
        PROGRAMS.check_options(*program)
    elif not callable(masks):
        _existing(masks)


def list_mask_programs() -> list[str]:
    """Names of all programs that make masks.

    >>> list_mask_programs()
    ['cut', 'sam2']
    """
    return PROGRAMS.names()


def masks_on_disk(masks: Any) -> dict[str, str]:
    """SHA-256 of what of an option ``masks`` lies on this machine, before anything is loaded: the
    given masks, or a program's weights.
    """
    program = _program_of(masks)
    if program is None:
        path = None if callable(masks) else Path(masks).expanduser()
        return {"masks": _digest_of(path)} if path is not None and path.exists() else {}
    name, given = program
    files = PROGRAMS.get(name).weight_files({**PROGRAMS.options(name), **given})
    return {f"masks {key}": file_sha256(file) for key, file in files.items()}


def mask_files(folder: Path) -> list[Path]:
    """The masks that are kept in a folder of the cache: named by digits of hashes."""
    return [
        path
        for path in sorted(folder.glob("*/*.npz"))
        if re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{64}\.npz", path.relative_to(folder).as_posix())
    ]


def _program_of(masks: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and options of a program; None for a folder, a file or a callable.

    Raises:
        SFPError: an unknown name.
    """
    if not isinstance(masks, (str, Mapping)):
        return None
    if isinstance(masks, str):
        name, path = masks.partition(":")[0], Path(masks).expanduser()
        named = path.suffix == ".json" or path.is_dir() or set(name) & {"/", os.sep}
        if name not in PROGRAMS.names() and named:
            return None
        PROGRAMS.get(name)
    name, options = parse_spec(masks)
    PROGRAMS.get(name)
    return name, options


def _existing(source: str | os.PathLike) -> Path:
    """The path of a folder or a COCO file; raises SFPError where there is none."""
    path = Path(source).expanduser()
    coco = path.suffix == ".json"
    if not (path.is_file() if coco else path.is_dir()):
        kind = "file" if coco else "folder"
        raise SFPError(f"There is no {kind} {path} of masks; give {_KINDS}.")
    return path


def _size_of(picture: Picture) -> tuple[int, int]:
    """(H, W) of the picture as it was read, from its file's head where nothing more is known."""
    if picture.pixels is not None:
        return picture.pixels.shape[:2]
    if not picture.path:
        return tuple(picture.image.shape[1:])
    try:
        with Image.open(picture.path) as opened:
            turned = opened.getexif().get(0x0112, 1) >= 5  # its sides are swapped when it is read
            return opened.size if turned else opened.size[::-1]
    except Exception:  # the one who reads it tells
        return picture.original().shape[:2]


def _places(path: Path) -> Iterator[Path]:
    """The stem of an image's file below its last folders, most of them first."""
    parts = [part for part in path.parts[:-1] if part not in (path.anchor, "..", ".")]
    for first in range(len(parts) + 1):
        yield Path(*parts[first:], path.stem)


def _require_masks(regions: Regions, where: str) -> Regions:
    """The masks; raises SFPError where all are empty."""
    if not len(regions) or not regions.areas.any():
        raise SFPError(
            f"{where} has no region; give at least one mask, for example of the whole image."
        )
    return regions


def _of_array(found: Any, where: str) -> Regions:
    """Raises SFPError for what is neither a stack nor a map."""
    values = found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if values.ndim == 2 and values.size and values.dtype.kind in "bui":
        return Regions.of_map(values)
    try:
        return Regions.of_stack(values)
    except SFPError as error:
        raise SFPError(f"{where}: {str(error)[0].lower()}{str(error)[1:]}") from error


def _read_masks(file: Path) -> Regions:
    """Raises SFPError for a file that can't be read, or holds something else."""
    try:
        if file.suffix == ".png":
            with Image.open(file) as opened:
                mode, values = opened.mode, np.array(opened)
        elif file.suffix == ".npz":
            with np.load(file) as saved:
                values = saved["masks"]
        else:
            values = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Pillow, zipfile and pickle raise what they stumble on
        refuse_want_of_memory(error, f"reading {file}")
        raise SFPError(
            f"{file} can't be read as masks ({str(error).splitlines()[0][:160] or error!r}); give a"
            " PNG map, 'masks' (M, H, W) in an .npz, or a tensor (M, H, W) in a .pth file."
        ) from error
    if file.suffix == ".png" and values.ndim != 2:
        raise SFPError(
            f"{file} is a colour PNG ({mode}); give a grey or palette PNG whose pixels are the"
            " numbers of regions, 0 for none."
        )
    if file.suffix != ".png" and getattr(values, "ndim", 0) != 3:
        shape = getattr(values, "shape", type(values).__name__)
        raise SFPError(f"{file} holds {shape}; give masks (M, H, W).")
    return _of_array(values, str(file))


def _read_coco(file: Path) -> tuple[dict[str, tuple[int, int, int]], dict[int, list]]:
    """Number, height and width of each image by its file's name, and the masks of each number.

    Raises:
        SFPError: no such file, or no COCO file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {
            str(one["file_name"]): (one["id"], int(one["height"]), int(one["width"]))
            for one in content["images"]
        }
        masks: dict[int, list] = {}
        for one in content["annotations"]:
            masks.setdefault(one["image_id"], []).append(one["segmentation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SFPError(
            f"{file} can't be read as a COCO file of masks ({error!r}); it needs images with id,"
            " file_name, height and width, and annotations with image_id and segmentation."
        ) from error
    return images, masks


def _coco_runs(segmentation: Any, height: int, width: int) -> dict:
    """Compressed run lengths of polygons, or of run lengths of either kind."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return dict(size=[height, width], counts=counts.encode() if isinstance(counts, str) else counts)


def _digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the masks in a folder, by their names below it."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix in ENDINGS and file.is_file() and not file.name.startswith("."):
            name = file.relative_to(path).as_posix()
            digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _read_kept(file: Path) -> Regions | None:
    """The masks in a file of the cache; None where there is none, or it is damaged."""
    try:
        return Regions.from_bytes(file.read_bytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
