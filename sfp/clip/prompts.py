"""The 80 ImageNet prompts of OpenAI's CLIP, made from their pattern, and prompts from a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sfp.errors import SFPError

_PICTURES = (
    "bad photo", "sculpture", "low resolution photo", "rendering", "cropped photo", "tattoo",
    "bright photo", "dark photo", "drawing", "close-up photo", "black and white photo", "painting",
    "pixelated photo", "jpeg corrupted photo", "blurry photo", "good photo", "doodle", "sketch",
    "rendition",
)  # fmt: skip
_LOOKS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_MATERIALS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
_ARTICLES = ("a", "the")


def _imagenet_prompts() -> tuple[str, ...]:
    prompts = [f"a {picture} of {article} {{}}." for picture in _PICTURES for article in _ARTICLES]
    prompts += [f"a photo of {article} {look} {{}}." for look in _LOOKS for article in _ARTICLES]
    prompts += [
        f"{kind} of {article} {{}}."
        for kind in ("graffiti", "art", "itap")
        for article in _ARTICLES
    ]
    prompts += [f"{article} {material} {{}}." for material in _MATERIALS for article in _ARTICLES]
    prompts += [f"{article} {{}} in a video game." for article in _ARTICLES]
    prompts += [f"a photo of {word} {{}}." for word in ("a", "the", "many", "one", "my")]
    prompts += ["itap of my {}."]
    return tuple(prompts)


IMAGENET_PROMPTS = _imagenet_prompts()
IN_THE_SCENE_PROMPTS = tuple(
    f"{start} {{}} in the scene."
    for start in ("there is a", "there is the", "this is a", "this is the", "this is one")
)
PROMPT_SETS = {
    "imagenet80": IMAGENET_PROMPTS,
    "imagenet85": IMAGENET_PROMPTS + IN_THE_SCENE_PROMPTS,  # CLIP-Surgery, the original MaskCLIP
    "photo": ("a photo of a {}.",),
}


def is_prompt_file(prompts: str | os.PathLike) -> bool:
    """Whether a text names a file of prompts rather than one of ``PROMPT_SETS``."""
    if prompts in PROMPT_SETS:
        return False
    path = Path(prompts)
    return isinstance(prompts, os.PathLike) or path.suffix == ".txt" or path.is_file()


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a UTF-8 file, one in each line that is not empty, in any language.

    Raises:
        SFPError: it can't be read, or is empty.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SFPError(
            f"The file of prompts {path} can't be read ({error}); give a UTF-8 text file with one"
            " prompt in each line, such as 'a photo of a {}.'"
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise SFPError(
            f"The file of prompts {path} is empty; write one prompt in each line, such as 'a photo"
            " of a {}.'"
        )
    return prompts


def prompts_sha256(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts, as a segmenter's protocol and results.json have it."""
    return hashlib.sha256(json.dumps([list(prompts)]).encode()).hexdigest()
