"""What each layer of CLIP does with one picture, as it is and purified: outliers, attention."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfp.clip.registers import Registers
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.errors import SFPError
from sfp.files import make_folder, whole_file
from sfp.images import resize_short_side
from sfp.inspection.stream import Stream, principal_colours
from sfp.methods import Method
from sfp.options import check_type
from sfp.outliers import Detector, Purifier, build_detector, require_class_token

_MOST_BYTES = 2 << 30
_USUAL = ("SOM", "L2", "LOF")  # detectors; the first needs a class token


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """One picture through the layers of CLIP, twice: as the model is, and purified.

    >>> import numpy as np, sfp
    >>> segmenter = sfp.Segmenter("SFP", model="Toyland", device="cpu")
    >>> inspection = segmenter.inspect(np.zeros((224, 224, 3), np.uint8), detectors=["L2"])
    >>> inspection.plain.outliers["L2"].sum((1, 2)).tolist()
    [10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]

    Memory: both streams hold L (P + N) (P + N + C) float32, 18 MB in all for ViT-B/16 at 224x224
    pixels and 76 MB at 336x448, where L = 12, C = 768, N = 196 and 588. Each layer whose heads are
    asked for adds 2 H (P + N)^2 of them, 4 and 33 MB, one whose MLP is 2 (P + N) M, 5 and 14 MB.

    Attributes:
        image: the part of the resized picture that the patches cover, (h p, w p, 3) uint8 for
            patches of p pixels.
        box: (left, top, right, bottom) of that part in pixels of the picture as it was given.
        plain: the stream without purification and registers.
        purified: the stream repaired by the method's own purifier, or by SOM (without a class token
            L2) after layers 1..L-1 where it has none; with the method's registers.
        features: the method's features (h, w, D) float32, projected into the joint space, not
            normalised; they depend on no name.
        protocol: method, model, purifier, purified layers and sizes.
    """

    image: np.ndarray
    box: tuple[float, float, float, float]
    plain: Stream
    purified: Stream
    features: np.ndarray
    protocol: dict[str, Any] = field(repr=False)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.plain.grid

    @property
    def layers(self) -> int:
        """L."""
        return self.plain.layers

    @property
    def feature_colours(self) -> np.ndarray:
        """Principal components of the features, as ``Stream.pca`` has those of the tokens."""
        rows = self.features.reshape(-1, self.features.shape[-1])
        return principal_colours(rows).reshape(*self.grid, 3)

    def save(self, path: str | os.PathLike) -> Path:
        """Write all numbers as one .npz, for ``numpy.load``; missing folders are made.

        ``image``, ``box``, ``grid``, ``features`` and ``protocol`` (JSON), and of each stream, such
        as ``plain``: ``plain_tokens``, ``plain_attention``, ``plain_repaired``; by detector
        ``plain_outliers_SOM`` and ``plain_scores_SOM``; by layer, where asked for,
        ``plain_heads_11`` and ``plain_mlp_11``. Shapes are those of ``Stream``.

        Raises:
            SFPError: another ending, or the file can't be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise SFPError(f"{path} ends in {path.suffix!r}; an inspection is written as .npz.")
        make_folder(path.parent)
        numbers = dict(image=self.image, box=np.array(self.box), grid=np.array(self.grid))
        numbers |= dict(features=self.features, protocol=np.array(json.dumps(self.protocol)))
        for side in ("plain", "purified"):
            stream = getattr(self, side)
            own = {name: getattr(stream, name) for name in ("tokens", "attention", "repaired")}
            for name, by in (
                ("outliers", stream.outliers),
                ("scores", stream.outlier_scores),
                ("heads", stream.heads),
                ("mlp", stream.mlp),
            ):
                own |= {f"{name}_{key}": values for key, values in by.items()}
            numbers |= {f"{side}_{name}": values for name, values in own.items()}
        with whole_file(path) as partial:
            np.savez_compressed(partial, **numbers)
        return path

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch at pixel x, y of ``image``.

        Raises:
            SFPError: the pixel is outside it.
        """
        check_type("x", x, float)
        check_type("y", y, float)
        height, width = self.image.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise SFPError(
                f"There is no pixel x={x}, y={y} in the inspected {width}x{height}; x goes from 0 "
                f"to {width - 1}, y to {height - 1}."
            )
        return int(y * self.grid[0] / height), int(x * self.grid[1] / width)

    def __repr__(self) -> str:
        height, width = self.grid
        return (
            f"Inspection({self.protocol['model']}, {self.layers} layers, {height}x{width} patches, "
            f"detectors {', '.join(self.plain.outliers)})"
        )


@torch.inference_mode()
def inspect_image(
    method: Method,
    pixels: np.ndarray,
    *,
    short_side: int = 224,
    box: tuple[int, int, int, int] | None = None,
    detectors: Sequence[str | Detector] | None = None,
    heads: Sequence[int] = (),
    mlp: Sequence[int] = (),
) -> Inspection:
    """See ``Segmenter.inspect``; ``pixels`` (H, W, 3) uint8.

    Raises:
        SFPError: a box that is not inside the picture, an unknown detector or one that stands
            twice, no such layer, or a picture of so many patches that the arrays would take over
            2 GiB.
    """
    trunk = method.trunk
    height, width = pixels.shape[:2]
    corners = (0, 0, width, height) if box is None else box
    check_type("box", corners, Sequence[int])
    if len(corners) != 4:
        raise SFPError(
            f"The box {box!r} is no rectangle; give (left, top, right, bottom) in pixels of the "
            "picture."
        )
    left, top, right, bottom = corners
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise SFPError(
            f"The box {box} is not inside the {width}x{height} picture; give (left, top, right, "
            "bottom) in its pixels."
        )
    if detectors is None:
        detectors = _USUAL if trunk.class_token else _USUAL[1:]
    check_type("detectors", detectors, Sequence[str | Detector], ("SOM", "L2"))
    found = [each if isinstance(each, Detector) else build_detector(each) for each in detectors]
    for detector in found:
        require_class_token(detector, trunk.class_token, method.clip.name)
    names = [detector.name for detector in found]
    if len(set(names)) < len(names):
        raise SFPError(
            f"The detectors {names} name one twice; inspect once for each setting of it."
        )
    resized = resize_short_side(pixels[top:bottom, left:right], short_side, trunk.patch)
    grid = trunk.grid_of(*resized.shape[1:])
    tokens = trunk.rows(grid).stop
    heads, mlp = (_layers(given, trunk.layers, o) for given, o in ((heads, "heads"), (mlp, "mlp")))
    size = 8 * trunk.layers * tokens * (tokens + trunk.width)
    size += 8 * tokens * sum(trunk.blocks[layer - 1].heads * tokens for layer in heads)
    size += 8 * tokens * sum(trunk.blocks[layer - 1].hidden_width for layer in mlp)
    if size > _MOST_BYTES:
        fewer = ", or fewer layers of heads and mlp" if heads or mlp else ""
        raise SFPError(
            f"{grid[0] * grid[1]} patches in {trunk.layers} layers would take"
            f" {size / (1 << 30):.1f} GiB to inspect; lower short_side={short_side}, or choose a"
            f" part of the picture by box{fewer}."
        )
    covered = resized[:, : grid[0] * trunk.patch, : grid[1] * trunk.patch]
    down, across = covered.shape[1:]
    scale_x, scale_y = (right - left) / resized.shape[2], (bottom - top) / resized.shape[1]
    windows = method.clip.normalise(covered)[None].to(method.clip.device)
    usual = build_detector("SOM" if trunk.class_token else "L2")
    purifier = method.purifier or Purifier(usual, range(1, trunk.layers))
    return Inspection(
        image=covered.permute(1, 2, 0).to(torch.uint8).numpy(),
        box=(float(left), float(top), left + across * scale_x, top + down * scale_y),
        plain=_run(method, windows, found, heads, mlp),
        purified=_run(method, windows, found, heads, mlp, purifier, method.appended),
        features=method(windows)[0].float().cpu().numpy(),
        protocol={
            "method": method.name,
            "model": method.clip.name,
            "pretrained": method.clip.pretrained,
            "weights_sha256": method.clip.fingerprint,
            "purifier": repr(purifier.detector),
            "purified_layers": sorted(purifier.layers),
            "registers": method.appended and method.appended.as_dict(),
            "detectors": [repr(detector) for detector in found],
            "short_side": short_side,
        },
    )


def _run(
    method: Method,
    windows: Tensor,
    detectors: Sequence[Detector],
    heads: Sequence[int],
    mlp: Sequence[int],
    purifier: Purifier | None = None,
    registers: Registers | None = None,
) -> Stream:
    """All L layers on one window (1, 3, H, W): detectors run before the purifier, and the MLP's
    units are kept as the registers leave them.
    """
    trunk = method.trunk
    grid = trunk.grid_of(*windows.shape[-2:])
    tokens, attention, repaired = [], [], []
    masks: dict[str, list[np.ndarray]] = {detector.name: [] for detector in detectors}
    scores: dict[str, list[np.ndarray]] = {detector.name: [] for detector in detectors}

    def detect(state: LayerState) -> None:
        state.require_finite()
        for detector in detectors:
            mask, score = detector(state)
            masks[detector.name].append(mask[0].cpu().numpy().reshape(grid))
            scores[detector.name].append(score[0].float().cpu().numpy().reshape(grid))

    def keep(state: LayerState) -> None:
        tokens.append(state.tokens[0, : state.rows.stop].float().cpu().numpy())
        attention.append(state.attention[0].float().cpu().numpy())
        found = state.outliers
        repaired.append(np.zeros(grid, bool) if found is None else found[0].cpu().numpy())

    by_head: dict[int, np.ndarray] = {}
    units: dict[int, np.ndarray] = {}

    def keep_heads(state: LayerState) -> None:
        by_head[state.layer] = state.head_attention[0].cpu().numpy()

    def keep_units(state: LayerState) -> None:
        factor = trunk.blocks[state.layer - 1].factor
        found = state.hidden[0, : state.rows.stop].float() / factor
        units[state.layer] = found.cpu().numpy()

    layers = range(1, trunk.layers + 1)
    repair = [part.hook for part in (registers, purifier) if part]
    hooks = [Hook(detect, layers, Attention.MAP), *repair, Hook(keep, layers, Attention.MAP)]
    hooks += [Hook(keep_heads, heads), Hook(keep_units, mlp, point="neurons")]
    count = registers.count if registers else 0
    trunk.run(windows, hooks, resize=method.positional_resize, registers=count)
    return Stream(
        grid,
        np.stack(tokens),
        np.stack(attention),
        {name: np.stack(found) for name, found in masks.items()},
        {name: np.stack(found) for name, found in scores.items()},
        np.stack([mask.reshape(grid) for mask in repaired]),
        trunk.class_token,
        by_head,
        units,
    )


def _layers(given: Sequence[int], count: int, option: str) -> list[int]:
    """Layers in their order, each once.

    Raises:
        SFPError: there is no such layer.
    """
    check_type(option, given, Sequence[int], [count])
    for layer in given:
        if layer not in range(1, count + 1):
            raise SFPError(
                f"{option}={list(given)} names layer {layer}; this model's layers go from 1 to"
                f" {count}."
            )
    return sorted(set(given))
