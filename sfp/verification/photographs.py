"""Step c: of twenty words the right one is the most probable for a whole picture.

A trained CLIP passes this easily. Where it does not, the mistakes that a set-up can have are tried
one by one, and the one that explains the answers is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfp.clip import load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.plugin import require_mmseg
from sfp.verification.findings import Finding, failed, impossible, passed
from sfp.verification.pictures import (
    Photograph,
    among_twenty,
    photographs,
    square,
    toyland_things,
    whole_window,
)
from sfp.verification.session import Session

_SCENES = 4  # of Toyland
_OF_DATASET = 12  # pictures of each dataset
_LEAST = dict(given=1.0, dataset=0.75)  # share of right words
_CLEAR = 0.3  # share of a picture that its most frequent class has
_BACKGROUNDS = ("background", "other")


def run(session: Session) -> None:
    given = session.given.images
    if session.is_toyland:
        session.check("c", "things of Toyland", lambda: toyland(session))
    if given or not session.is_toyland:
        depends = [(str(file), file.stat().st_mtime, word) for file, word in given]
        session.check("c", "photographs", lambda: of_photographs(session), images=depends)
    if session.is_toyland:
        return
    for name, cfg in prepared(session).items():
        session.check(
            "c", f"pictures of {name}", lambda cfg=cfg: of_dataset(session, cfg), root=root_of(cfg)
        )


def prepared(session: Session) -> dict:
    """The configs of the datasets that are here, by name; none without mmsegmentation."""
    try:
        require_mmseg()
    except SFPError:  # told in step f
        return {}
    from sfp.verification.datasets import prepared_configs

    return prepared_configs(session)[0]


def root_of(cfg) -> str:
    return str(cfg.test_dataloader.dataset.data_root)


def toyland(session: Session) -> Finding:
    """Toyland's CLIP knows the things of its scenes."""
    return judge(session, list(toyland_things(_SCENES)), "things of Toyland's scenes", crops=True)


def of_photographs(session: Session) -> Finding:
    """Those that were given, or that ship with other packages."""
    found = photographs(session.given.images)
    if not found:
        return impossible("no photographs are here; give --images FILE=word ...")
    what = "photographs" if session.given.images else "photographs that ship with other packages"
    return judge(session, found, what)


def of_dataset(session: Session, cfg) -> Finding:
    """Pictures of a dataset whose labels have one class that prevails."""
    from sfp.evaluation.config import read_vocabulary
    from sfp.evaluation.dataset import build_dataset, spread_over
    from sfp.images import read_image

    dataset, classes = build_dataset(cfg), [own[0] for own in read_vocabulary(cfg.model).words]
    found: list[Photograph] = []
    for index in spread_over(dataset, 10 * _OF_DATASET):
        item = dataset[index]["data_samples"]
        labels = item.gt_sem_seg.data[0].numpy().ravel()
        counts = np.bincount(labels[labels < len(classes)], minlength=len(classes))
        if classes[0].lower() in _BACKGROUNDS or "background" in dataset.metainfo["classes"][0]:
            counts[0] = 0
        top = int(counts.argmax())
        if counts[top] < _CLEAR * labels.size or counts[top] < 2 * np.sort(counts)[-2]:
            continue
        words = among_twenty(classes[top], [c for i, c in enumerate(classes) if not counts[i]])
        name = Path(item.img_path).name
        found.append(Photograph(name, read_image(item.img_path), classes[top], words))
        if len(found) == _OF_DATASET:
            break
    if not found:
        return impossible(f"no class prevails in a picture of {len(dataset)}")
    what = "pictures whose labels one class prevails in"
    return judge(session, found, what, least=_LEAST["dataset"])


def judge(
    session: Session,
    pictures: Sequence[Photograph],
    what: str,
    crops: bool = False,
    least: float = _LEAST["given"],
) -> Finding:
    """Whether the right word is the most probable of so many pictures, and why not.

    Args:
        crops: squeeze the pictures to squares, else their centres are taken.
        least: share of right words that passes.
    """
    clip = session.clip()
    side = clip.trunk.native_grid[0] * clip.trunk.patch
    cut = square if crops else whole_window
    images = torch.stack([cut(picture.pixels, side) for picture in pictures])
    found = ask(clip, clip.normalise(images), pictures)
    right = [answer == picture.word for answer, picture in zip(found, pictures, strict=True)]
    share, count = sum(right) / len(right), len(pictures[0].words)
    words = f"{sum(right)} of {len(right)} {what}, right among {count} words"
    answers = {p.name: [p.word, own] for p, own in zip(pictures, found, strict=True)}
    if share >= least:
        return passed(words, answers=answers)
    wrong = [
        f"{picture.name} is called {own!r} instead of {picture.word!r}"
        for own, picture in zip(found, pictures, strict=True)
        if own != picture.word
    ]
    causes = causes_of(clip, images, pictures, max(least, share + 0.2))
    why = " or ".join(causes) or (
        "none of activation, mean and deviation, channels and shifted names explains it: are these"
        " the weights of a trained CLIP?"
    )
    return failed(f"{words}: {why}; {wrong[0]}", answers=answers, causes=causes)


@torch.inference_mode()
def ask(
    clip: FrozenCLIP, windows: Tensor, pictures: Sequence[Photograph], shift: int = 0
) -> list[str]:
    """The most probable word of each picture; ``shift`` reads its neighbour in the list."""
    images = torch.cat([clip.encode_image(some.to(clip.device)) for some in windows.split(8)])
    bank, found = TextBank(clip), []
    # all words at once: a cache of one vocabulary
    vocabulary = list(dict.fromkeys(word for picture in pictures for word in picture.words))
    vectors = bank.encode(vocabulary)
    place = {word: number for number, word in enumerate(vocabulary)}
    for image, picture in zip(images, pictures, strict=True):
        rows = torch.tensor([place[word] for word in picture.words], device=clip.device)
        rows = (rows + shift) % len(vocabulary)
        best = clip.probabilities(image[None], vectors[rows])[0].argmax()
        found.append(picture.words[int(best)])
    return found


def causes_of(
    clip: FrozenCLIP, images: Tensor, pictures: Sequence[Photograph], least: float
) -> list[str]:
    """The mistakes without which so many answers would be right; images (B, 3, s, s) in
    [0, 255].
    """
    usual = clip.normalise(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.pixel_mean, clip.pixel_std))
    tries: dict[str, Callable[[], list[str]]] = {
        "mean and deviation are swapped": lambda: ask(clip, (images / 255 - std) / mean, pictures),
        "the channels are in BGR order": lambda: ask(
            clip, clip.normalise(images.flip(1)), pictures
        ),
        "names shifted by one": lambda: ask(clip, usual, pictures, 1),
        "names shifted by one, to the other side": lambda: ask(clip, usual, pictures, -1),
    }
    other = with_other_activation(clip)
    if other is not None:
        words = {True: "QuickGELU", False: "plain GELU"}
        tries[
            f"the activation: {words[other.quick_gelu]} fits, and the weights were loaded with"
            f" {words[clip.quick_gelu]} (quick_gelu={other.quick_gelu})"
        ] = lambda: ask(other, usual, pictures)
    shares = {}
    for cause, answer in tries.items():
        right = [own == p.word for own, p in zip(answer(), pictures, strict=True)]
        shares[cause] = sum(right) / len(right)
    best = max(shares.values())
    return [cause for cause, share in shares.items() if share == best and share >= least]


def with_other_activation(clip: FrozenCLIP) -> FrozenCLIP | None:
    """The same weights with the other of GELU and QuickGELU; None where they can't be had so."""
    weights = dict(clip.model.state_dict())
    try:
        return load_clip(
            pretrained=weights,
            device=clip.device,
            quick_gelu=not clip.quick_gelu,
            head_width=clip.trunk.width // clip.trunk.heads,
            pixel_mean=clip.pixel_mean,
            pixel_std=clip.pixel_std,
        )
    except SFPError:  # another family of towers
        return None
