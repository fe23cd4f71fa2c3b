"""Weights, images and texts of the golden outputs in ``tests/goldens``, made from PCG64 alone.

The goldens were computed by the authors' own code on these weights (see ``goldens/index*.json`` for
repositories and commits). Every number below is a recipe that must be met to the bit: ``digest`` is
compared before anything else. Images are the normalised tensors themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDENS = Path(os.environ.get("SFP_GOLDENS", Path(__file__).parent / "goldens"))


def read_index(name: str) -> dict:
    """An index file; where the folder has none, one without cases."""
    path = GOLDENS / f"{name}.json"
    empty = dict(seed=0, weights_sha256={}, images={}, sizes={}, segmentor_images={}, cases={})
    empty |= dict(cliptrase_dbscan={}, proxies={}, files={}, specs={})
    return {**empty, **(json.loads(path.read_text()) if path.is_file() else {})}


def spec_sizes(spec: str) -> tuple[int, int]:
    """Layers and patch of a network such as "vit24-p14"; the patch is 16 by default."""
    layers, patch = re.fullmatch(r"vit(\d+)(?:-p(\d+))?(?:-w\d+)?", spec).groups()
    return int(layers), int(patch or 16)


def spec_width(spec: str) -> int:
    """Width of a network such as "vit12-w256"; 128 by default."""
    found = re.search(r"-w(\d+)$", spec)
    return int(found.group(1)) if found else WIDTH


INDEX = read_index("index")
SEED = INDEX["seed"]
# golden files that tests read; one that lies in the folder and is not here fails
TESTED = {
    "vanilla", "maskclip", "clearclip", "sclip", "naclip", "clip_surgery", "gem", "cliptrase",
    "scclip", "sfp_som", "sfp_l2", "sfp_lof", "sfp_2025_12", "proxyclip", "pamr",
    "segmentor_sfp", "segmentor_scclip",
    "rfclip", "segmentor_rfclip", "resclip", "pearl", "tlp", "segmentor_pearl", "dihclip", "fsa",
    "freecp", "floss", "registers",
    "lavg", "trident", "trident_refine", "cass", "lposs", "corrclip", "clip_dinoiser", "car",
    "reco",  # has no method here: it needs an ImageNet to retrieve from (docs/peers.md)
}  # fmt: skip
# name: (layers, patch); all have width 128, 64-wide heads, 224-pixel images, embedding 64, text
# width 64 with 2 layers
SPECS = {spec: spec_sizes(spec) for spec in INDEX["weights_sha256"]}
WIDTH, EMBED, TEXT_WIDTH, TEXT_LAYERS, CONTEXT, VOCABULARY = 128, 64, 64, 2, 77, 49408


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights, images and texts of another index's seed, while it lasts."""
    global SEED
    before, SEED = SEED, seed
    try:
        yield
    finally:
        SEED = before


def _uniform(name: str, count: int) -> np.ndarray:
    """Float64 in (0, 1) from the raw 64-bit stream of a generator that the name seeds."""
    raw = np.random.PCG64(zlib.crc32(name.encode()) + SEED).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _normal(name: str, *shape: int, std: float = 1.0) -> np.ndarray:
    """Normals by Box and Muller: all cosines first, then all sines."""
    count = int(np.prod(shape))
    half = (count + 1) // 2
    u = _uniform(name, 2 * half)
    radius, angle = np.sqrt(-2.0 * np.log(u[:half])), 2.0 * np.pi * u[half:]
    return (std * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]).reshape(
        shape
    )


def _direction(name: str, width: int) -> np.ndarray:
    v = _normal(name, width)
    return v / np.sqrt((v * v).sum())


def _layer_norm(prefix: str, width: int) -> dict[str, np.ndarray]:
    return {
        f"{prefix}.weight": 1.0 + _normal(f"{prefix}.weight", width, std=0.10),
        f"{prefix}.bias": _normal(f"{prefix}.bias", width, std=0.05),
    }


def _block(prefix: str, width: int, layers: int, vision: bool) -> dict[str, np.ndarray]:
    unit, damp = width**-0.5, (2.0 * layers) ** -0.5
    shared = _normal(
        f"{prefix}attn.shared_qk", width, width, std=unit
    )  # tokens attend to their like
    q = 0.80 * shared + 0.85 * _normal(f"{prefix}attn.q_part", width, width, std=unit)
    k = 0.80 * shared + 0.85 * _normal(f"{prefix}attn.k_part", width, width, std=unit)
    v = 1.30 * _normal(f"{prefix}attn.v_part", width, width, std=unit)
    if vision:  # and the class token to outliers: a term of rank one in each head
        cls, outlier = (
            _direction("visual.class_direction", width),
            _direction("visual.outlier_direction", width),
        )
        for head in range(width // 64):
            sink = _direction(f"{prefix}attn.sink.{head}", 64)[:, None]
            q[64 * head : 64 * (head + 1)] += 1.2 * sink * cls[None, :]
            k[64 * head : 64 * (head + 1)] += 1.2 * sink * outlier[None, :]
    return {
        f"{prefix}attn.in_proj_weight": np.concatenate([q, k, v]),
        f"{prefix}attn.in_proj_bias": _normal(f"{prefix}attn.in_proj_bias", 3 * width, std=0.10),
        f"{prefix}attn.out_proj.weight": _normal(
            f"{prefix}attn.out_proj.weight", width, width, std=2.2 * unit * damp
        ),
        f"{prefix}attn.out_proj.bias": _normal(f"{prefix}attn.out_proj.bias", width, std=0.02),
        **_layer_norm(f"{prefix}ln_1", width),
        **_layer_norm(f"{prefix}ln_2", width),
        f"{prefix}mlp.c_fc.weight": _normal(
            f"{prefix}mlp.c_fc.weight", 4 * width, width, std=1.1 * unit
        ),
        f"{prefix}mlp.c_fc.bias": _normal(f"{prefix}mlp.c_fc.bias", 4 * width, std=0.10),
        f"{prefix}mlp.c_proj.weight": _normal(
            f"{prefix}mlp.c_proj.weight", width, 4 * width, std=1.4 * unit * damp
        ),
        f"{prefix}mlp.c_proj.bias": _normal(f"{prefix}mlp.c_proj.bias", width, std=0.02),
    }


def _positions(grid: int, channels: int) -> np.ndarray:
    """The class position, then a few waves over the grid plus noise: (1 + grid², width)."""
    t = (np.arange(grid, dtype=np.float64) + 0.5) / grid
    waves = np.zeros((grid, grid, channels))
    for a, b in ((a, b) for a in range(3) for b in range(3) if a or b):
        wave = np.cos(np.pi * a * t)[:, None] * np.cos(np.pi * b * t)[None, :]
        waves += wave[:, :, None] * _direction(f"visual.pos.{a}.{b}", channels) * 2.0
    noise = _normal("visual.pos.noise", grid, grid, channels, std=0.10)
    patches = (waves + noise).reshape(-1, channels)
    return np.concatenate([_normal("visual.pos.cls", channels, std=0.3)[None], patches])


def state_dict(spec: str) -> dict[str, Tensor]:
    """OpenAI-layout weights of a spec, float32 numbers that float16 holds exactly."""
    return {name: value.clone() for name, value in _state_dict(spec, SEED).items()}


@functools.lru_cache(4)
def _state_dict(spec: str, seed: int) -> dict[str, Tensor]:
    (layers, patch), width = spec_sizes(spec), spec_width(spec)
    pixels = 3.0 * patch * patch
    weights = {
        "visual.class_embedding": _normal("visual.class_embedding", width, std=0.3)
        + 5.0 * _direction("visual.class_direction", width),
        "visual.positional_embedding": _positions(224 // patch, width),
        "visual.conv1.weight": _normal(
            "visual.conv1.weight", width, 3, patch, patch, std=1.2 / np.sqrt(pixels)
        )
        + _normal("visual.conv1.mean", width, 3, 1, 1, std=1.1 / pixels),
        **_layer_norm("visual.ln_pre", width),
        **_layer_norm("visual.ln_post", width),
        "visual.proj": _normal("visual.proj", width, EMBED, std=width**-0.5),
        "token_embedding.weight": _normal(
            "token_embedding.weight", VOCABULARY, TEXT_WIDTH, std=0.3
        ),
        "positional_embedding": _normal("positional_embedding", CONTEXT, TEXT_WIDTH, std=0.1),
        **_layer_norm("ln_final", TEXT_WIDTH),
        "text_projection": _normal("text_projection", TEXT_WIDTH, EMBED, std=TEXT_WIDTH**-0.5),
        "logit_scale": np.asarray(4.60546875),
    }
    for i in range(layers):
        weights.update(_block(f"visual.transformer.resblocks.{i}.", width, layers, vision=True))
    for i in range(TEXT_LAYERS):
        weights.update(_block(f"transformer.resblocks.{i}.", TEXT_WIDTH, TEXT_LAYERS, vision=False))
    for i in {
        layers // 3,
        layers // 2,
        2 * layers // 3,
    }:  # hidden units that push a few tokens far out
        mlp = f"visual.transformer.resblocks.{i}.mlp."
        for u in range(2):
            weights[f"{mlp}c_fc.weight"][u] = 3.0 * _direction(f"{mlp}outlier.in.{u}", width)
            weights[f"{mlp}c_fc.bias"][u] = -4.5
            away = 0.85 * _direction("visual.outlier_direction", width) + 0.5 * _direction(
                f"{mlp}outlier.out.{u}", width
            )
            weights[f"{mlp}c_proj.weight"][:, u] = 6.0 * away
    return {
        key: torch.from_numpy(np.array(value, np.float16).astype(np.float32))
        for key, value in weights.items()
    }


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes in name order."""
    total = hashlib.sha256()
    for key in sorted(weights):
        value = np.ascontiguousarray(
            weights[key].numpy()
        )  # gives a scalar the shape (1,), which the digests were made with
        total.update(key.encode() + str(value.shape).encode() + value.tobytes())
    return total.hexdigest()


def image(name: str, height: int, width: int) -> Tensor:
    """A normalised picture (3, height, width) of waves, discs and boxes."""
    return _image(name, height, width, SEED).clone()


@functools.lru_cache(64)
def _image(name: str, height: int, width: int, seed: int) -> Tensor:
    y, x = (np.arange(height) + 0.5)[:, None] / 224.0, (np.arange(width) + 0.5)[None, :] / 224.0
    numbers = iter(_uniform(f"image.{name}.layout", 400).tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(numbers)

    planes = np.zeros((3, height, width))
    for channel in range(3):
        for _ in range(3):
            fy, fx, phase, strength = (
                between(0.2, 1.5),
                between(0.2, 1.5),
                between(0, 6.28),
                between(0.2, 0.6),
            )
            planes[channel] += strength * np.cos(2 * np.pi * (fy * y + fx * x) + phase)
    for number in range(7):
        cy, cx = between(0, height / 224.0), between(0, width / 224.0)
        ry, rx = between(0.07, 0.30), between(0.07, 0.30)
        box = (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx)
        disc = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1.0
        fy, fx, phase = between(-40, 40), between(-40, 40), between(0, 6.28)
        texture = np.cos(2 * np.pi * (fy * y + fx * x) + phase)
        for channel in range(3):
            base, strength = between(-1.8, 1.8), between(0.1, 0.9)
            planes[channel] = np.where(
                disc if number % 2 else box, base + strength * texture, planes[channel]
            )
    planes += _normal(f"image.{name}.noise", 3, height, width, std=0.15)
    return torch.from_numpy(
        (np.round(np.clip(planes, -2.5, 2.5) * 256.0) / 256.0).astype(np.float32)
    )


def case_image(case: str) -> Tensor:
    """The picture of a golden case such as "vit12/win0" or "vit12/win1_res0.5", with a batch of
    one.
    """
    spec, name = case.split("/")
    name = name.split("_")[0]
    own = INDEX["images"].get(f"{spec}/{name}", f"{name}.0")
    return image(own, *INDEX["sizes"].get(name, (224, 224)))[None]


def text_features(classes: int = 7) -> Tensor:
    """Unit rows (classes, 64) in place of a text tower."""
    rows = _normal("text_features", classes, EMBED)
    return torch.from_numpy(
        (rows / np.sqrt((rows * rows).sum(1, keepdims=True))).astype(np.float32)
    )


def token_ids() -> Tensor:
    """Four rows of 3, 8, 13 and 18 random words between start and end."""
    u = _uniform("token_ids", 4 * CONTEXT).reshape(4, CONTEXT)
    ids = np.zeros((4, CONTEXT), np.int64)
    for row, length in enumerate((3, 8, 13, 18)):
        ids[row, 0], ids[row, 1 + length] = VOCABULARY - 2, VOCABULARY - 1
        ids[row, 1 : 1 + length] = 1 + (u[row, :length] * (VOCABULARY - 3)).astype(np.int64)
    return torch.from_numpy(ids)


def score_maps(name: str, channels: int, height: int, width: int) -> Tensor:
    """Smooth random maps (1, channels, height, width) with a little noise."""
    t, s = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    maps = np.zeros((channels, height, width))
    for a in range(5):
        for b in range(5):
            strength = _normal(f"proxy.{name}.{a}.{b}", channels, std=1.0 / (1.0 + 0.5 * (a + b)))[
                :, None, None
            ]
            maps += (
                strength
                * np.cos(np.pi * a * t)[None, :, None]
                * np.cos(np.pi * b * s)[None, None, :]
            )
    maps += _normal(f"proxy.{name}.noise", channels, height, width, std=0.25)
    return torch.from_numpy(np.round(maps * 1024.0)[None].astype(np.float32) / np.float32(1024.0))


def golden(file: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file; the test is skipped where the folder has none."""
    if not (GOLDENS / f"{file}.npz").is_file():
        pytest.skip(f"{GOLDENS.name} has no {file}.npz")
    return dict(_golden(file))


@functools.lru_cache(4)
def _golden(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{file}.npz") as arrays:
        return dict(arrays)


def cases(file: str) -> list[str]:
    """The cases of a golden file, such as "vit12/win0"; none where the folder has no such file."""
    if not (GOLDENS / f"{file}.npz").is_file():
        return []
    with np.load(GOLDENS / f"{file}.npz") as arrays:  # only its names are read
        return sorted({key.rpartition("/")[0] for key in arrays if key.endswith("/logits")})
