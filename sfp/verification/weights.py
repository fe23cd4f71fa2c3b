"""Step b: the weights are those that were published, and are used as they were trained."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfp.clip.built_in import BUILT_IN
from sfp.clip.clip import l2_normalise
from sfp.clip.loading import weights_file
from sfp.clip.prompts import IMAGENET_PROMPTS
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.files import file_sha256
from sfp.network import published_sha256, url_sha256
from sfp.verification.findings import (
    FAILED,
    IMPOSSIBLE,
    Finding,
    failed,
    impossible,
    judged,
    passed,
)
from sfp.verification.session import Session

_OPENAI_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_NEAR = 2e-5  # of unit vectors and normalised pixels in float32


@dataclass(frozen=True)
class Published:
    """What is known of the very weights.

    Attributes:
        title: for people.
        model, tag: open_clip's, or the built-in model's.
        quick_gelu: the activation that they were trained with.
        mean, std: of the pixels in [0, 1].
        digest: SHA-256 as it was published, or its first digits; empty where nothing is.
    """

    title: str
    model: str
    tag: str
    quick_gelu: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""


def run(session: Session) -> None:
    if session.why_toyland is not None:
        why = session.why_toyland
        session.check("b", "ViT-B/16 of OpenAI", lambda: impossible(f"{why} Toyland instead."))
    if session.check("b", "weights", lambda: weights(session)).verdict in (FAILED, IMPOSSIBLE):
        return
    session.check("b", "activation, mean and deviation", lambda: used_as_published(session))
    session.check("b", "pixels", lambda: pixels(session))
    session.check("b", "words against open_clip", lambda: words(session))


def weights(session: Session) -> Finding:
    """Whether the weights are there, can be read, and are the published ones."""
    try:
        clip = session.clip()
    except SFPError as error:
        if needs_download(error):
            return impossible(str(error))
        raise
    file = weights_file(session.model, session.pretrained)
    trunk = clip.trunk
    name = f"{clip.name} {Path(clip.pretrained).name}"
    about = f"{name}: {trunk.layers} layers of {trunk.width}, patch {trunk.patch}"
    figures = dict(fingerprint=clip.fingerprint, file=file and str(file))
    if file is None:
        return passed(f"{about}; no file of its own, so no digest is compared", **figures)
    found, known = file_sha256(file), published(session)
    figures["sha256"] = found
    if known is None:
        return passed(
            f"{about}; SHA-256 {found[:16]}..., none that open_clip knows: no paper's weights",
            **figures,
        )
    if not known.digest:
        return passed(f"{about}; SHA-256 {found[:16]}..., none is published", **figures)
    good = found.startswith(known.digest)
    be = "as published" if good else f"not the published {known.digest[:16]}...; fetch it again"
    return judged(good, f"{about}; SHA-256 {found[:16]}..., {be} ({known.title})", **figures)


def needs_download(error: SFPError) -> bool:
    """Whether an error says that a file isn't here and can't be fetched."""
    return "there is no network" in str(error) or "HF_HUB_OFFLINE" in str(error)


def published(session: Session) -> Published | None:
    """What is known of the session's weights; None of a file that nobody published."""
    return _published(session.model, session.pretrained)


@functools.lru_cache(maxsize=8)
def _published(model: str, pretrained: str) -> Published | None:
    import open_clip

    built_in = {name.lower(): name for name in BUILT_IN}.get(str(pretrained).lower())
    built_in = built_in or (model if model in BUILT_IN and pretrained == "openai" else None)
    if built_in:
        digest = json.loads(BUILT_IN[built_in].with_suffix(".json").read_text())["sha256"]
        return Published(built_in, built_in, built_in.lower(), True, *_OPENAI_PIXELS, digest)
    file = weights_file(model, pretrained)
    named = pretrained in {tag for _, tag in open_clip.list_pretrained()}
    plain = model.replace("/", "-").replace("@", "-").removesuffix("px").removesuffix("-quickgelu")
    digest = file_sha256(file) if file is not None and not named else ""
    for name, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(name, tag)
        of_url = url_sha256(entry.get("url", ""))
        own = named and tag == pretrained and name.removesuffix("-quickgelu") == plain
        if own or (of_url and digest.startswith(of_url)):
            known = published_sha256(file, entry.get("url", "")) if own and file else of_url
            by_config = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
            return Published(
                f"open_clip's {name} {tag}",
                name.removesuffix("-quickgelu"),
                tag,
                bool(entry.get("quick_gelu", by_config)),
                tuple(entry.get("mean", _OPENAI_PIXELS[0])),
                tuple(entry.get("std", _OPENAI_PIXELS[1])),
                known,
            )
    return None


def used_as_published(session: Session) -> Finding:
    """The activation of the network, and the clip's mean and deviation, beside the published."""
    clip, known = session.clip(), published(session)
    words = {True: "QuickGELU", False: "plain GELU"}
    own = f"{words[clip.quick_gelu]}, mean {_shown(clip.pixel_mean)}, std {_shown(clip.pixel_std)}"
    if known is None:
        return impossible(
            f"{own} as given; nothing is published of this file to compare them with: step c tells"
        )
    if swapped(clip.pixel_mean, clip.pixel_std, known):
        return failed(f"mean and deviation are swapped: {own}")
    wrong = []
    if clip.quick_gelu != known.quick_gelu:
        wrong.append(f"the activation is {words[clip.quick_gelu]}, not {words[known.quick_gelu]}")
    for what, here, there in (
        ("mean", clip.pixel_mean, known.mean),
        ("deviation", clip.pixel_std, known.std),
    ):
        if not np.allclose(here, there, atol=1e-6):
            wrong.append(f"the {what} is {_shown(here)}, not {_shown(there)}")
    if wrong:
        return failed(f"{' and '.join(wrong)}, with which {known.title} was trained")
    return passed(f"{own}, as {known.title} was trained")


def swapped(mean: tuple[float, ...], std: tuple[float, ...], known: Published) -> bool:
    """Whether mean and deviation are each other's published values."""
    unlike = not np.allclose(known.mean, known.std, atol=1e-6)
    return bool(unlike and np.allclose(mean, known.std) and np.allclose(std, known.mean))


def pixels(session: Session) -> Finding:
    """``normalise`` beside the formula in NumPy, with the published mean and deviation."""
    clip, known = session.clip(), published(session)
    mean, std = (known.mean, known.std) if known else (clip.pixel_mean, clip.pixel_std)
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8)
    here = clip.normalise(torch.from_numpy(picture)).double().numpy()

    def formula(mean, std, values=picture):
        shaped = [np.array(v, np.float64).reshape(3, 1, 1) for v in (mean, std)]
        return (values / 255 - shaped[0]) / shaped[1]

    difference = float(np.abs(here - formula(mean, std)).max())
    if difference < _NEAR:
        whose = known.title if known else "the weights as given"
        return passed(f"(x / 255 - mean) / std of {whose}", difference=difference)
    guesses = {
        "mean and deviation are swapped": formula(std, mean),
        "the channels are in BGR order": formula(mean[::-1], std[::-1]),
        "pixels are not divided by 255": formula(mean, std, picture * 255.0),
    }
    named = [word for word, value in guesses.items() if np.abs(here - value).max() < 1e-3]
    cause = named[0] if named else "neither swapped nor reversed: look at FrozenCLIP.normalise"
    return failed(f"normalised pixels are off by {difference:.3g}: {cause}", difference=difference)


def words(session: Session) -> Finding:
    """The text bank's vectors beside open_clip's own text tower, prompt by prompt."""
    clip, names = session.clip(), ("cat", "dog", "house", "tree", "car", "sky")
    prompts = IMAGENET_PROMPTS[:3]
    found = TextBank(clip, prompts, cache_dir=False).encode(names).cpu()
    try:
        expected = _by_open_clip(session, names, prompts)
    except (AttributeError, TypeError) as error:  # a tower of another family
        return impossible(f"this model has no text tower that open_clip runs alone ({error})")
    difference = float((found - expected).abs().max())
    if difference < _NEAR * 5:
        return passed(
            f"open_clip's own, largest difference {difference:.1e}", difference=difference
        )
    return failed(_cause_of_words(found, expected, difference), difference=difference)


@torch.inference_mode()
def _by_open_clip(session: Session, names: tuple[str, ...], prompts) -> Tensor:
    clip, rows = session.clip(), []
    for name in names:
        ids = clip.tokenizer([prompt.format(name) for prompt in prompts])
        rows.append(l2_normalise(l2_normalise(clip.model.encode_text(ids)).mean(0)))
    return torch.stack(rows).cpu()


def _cause_of_words(found: Tensor, expected: Tensor, difference: float) -> str:
    off = f"word vectors are off by {difference:.2g}"
    for shift in (1, -1):
        if torch.allclose(found, expected.roll(shift, 0), atol=1e-3):
            return f"{off}: names shifted by one (each name has its neighbour's vector)"
    likeness = found @ expected.T
    best = likeness.argmax(1)
    if not torch.equal(best, torch.arange(len(found))):
        return f"{off}: names in another order, {best.tolist()}"
    return f"{off}, though each is nearest to its own word: prompts, tokens or the text tower"


def _shown(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3f}" for value in values)
