"""Figures of an ``Inspection``, after those of the SFP paper (ICCV 2025), as PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sfp.drawing import OUTLIER, Panel, Sheet, colours_over, heatmap, mark, mask_over
from sfp.errors import SFPError, unknown_choice

if TYPE_CHECKING:
    from sfp.inspection.inspection import Inspection, Stream

_HEIGHT = 170
_DRAWN = 2 * _HEIGHT  # maps are drawn twice as large and reduced, so that their lines are smooth
_FIRE = (235, 30, 60)
_ROOT = 0.5  # attention is drawn by its square root: its largest values dwarf the others


def attention_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    detector: str | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """After Fig. 1: in each layer the class token's attention, the patches' attention to themselves and that which they receive.

    Args:
        layers: six spread over the model if None.
        detector: the one whose outliers are outlined; the first of the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer or detector.
    """
    stream = inspection.purified if purified else inspection.plain
    layers, detector = _layers(inspection, layers), _detector(stream, detector)
    kinds = {
        "class-token attention": stream.cls_attention,
        "self-attention": stream.self_attention,
        "attention received": stream.received_attention,
    }
    rows = []
    for maps in kinds.values():
        row = [Panel(_photo(inspection))] if not rows else [None]
        for layer in layers:
            outliers = stream.outliers[detector][layer - 1]
            drawn = heatmap(
                inspection.image, maps[layer - 1], power=_ROOT, outliers=outliers, height=_DRAWN
            )
            row.append(Panel(drawn, f"max {_short(maps[layer - 1].max())}"))
        rows.append(row)
    which = "purified" if purified else "plain"
    return Sheet(
        rows,
        ["image", *(f"layer {layer}" for layer in layers)],
        list(kinds),
        legend=[(f"outliers by {detector}", OUTLIER)],
        bar=("0", "each map's maximum, square-root scale"),
        height=_HEIGHT,
        heading=f"Attention in {inspection.protocol['model']}, {which} stream",
    ).draw()


def outlier_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    detectors: Sequence[str] | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """After Fig. 3: what each detector takes for outliers through the layers, with the norms of the tokens.

    Args:
        layers: six spread over the model if None.
        detectors: all of the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer or detector.
    """
    stream = inspection.purified if purified else inspection.plain
    layers = _layers(inspection, layers)
    detectors = [_detector(stream, detector) for detector in detectors or stream.outliers]
    rows: list[list[Panel | None]] = []
    for detector in detectors:
        row = [None] if rows else [Panel(_photo(inspection))]
        for layer in layers:
            mask = stream.outliers[detector][layer - 1]
            row.append(
                Panel(
                    mask_over(inspection.image, mask, _FIRE, _DRAWN), f"{mask.sum()} of {mask.size}"
                )
            )
        rows.append(row)
    norms = [stream.norms[layer - 1] for layer in layers]
    drawn = [heatmap(inspection.image, norm, height=_DRAWN) for norm in norms]
    rows.append(
        [
            None,
            *(
                Panel(map_, f"max {_short(norm.max())}")
                for map_, norm in zip(drawn, norms, strict=True)
            ),
        ]
    )
    which = "purified" if purified else "plain"
    return Sheet(
        rows,
        ["image", *(f"layer {layer}" for layer in layers)],
        [*detectors, "norm"],
        legend=[("outliers", _FIRE)],
        bar=("norm 0", "each map's maximum"),
        height=_HEIGHT,
        heading=f"Outliers through the layers of {inspection.protocol['model']}, {which} stream",
    ).draw()


def patch_figure(
    inspection: Inspection,
    patch: tuple[int, int],
    layers: Sequence[int] | None = None,
    detector: str | None = None,
) -> Image.Image:
    """After Fig. 5: what a patch looks at before and after purification, and which patches its token resembles.

    Args:
        patch: (row, column).
        layers: six spread over the model if None.
        detector: the one whose outliers in the plain stream are outlined in the attention maps, and whose share of the
            patch's attention is written below; the first of the inspection if None.

    Raises:
        SFPError: no such patch, layer or detector.
    """
    layers, detector = _layers(inspection, layers), _detector(inspection.plain, detector)
    purifier = inspection.protocol["purifier"].partition("(")[0]
    streams = {"before": inspection.plain, "after": inspection.purified}
    rows: list[list[Panel | None]] = []
    for stream in streams.values():
        row: list[Panel | None] = [None]
        for layer in layers:
            attention, outliers = (
                stream.attention_of(layer, patch),
                inspection.plain.outliers[detector][layer - 1],
            )
            drawn = heatmap(
                inspection.image,
                attention,
                power=_ROOT,
                outliers=outliers,
                patch=patch,
                height=_DRAWN,
            )
            row.append(
                Panel(
                    drawn,
                    f"{100 * attention[outliers].sum():.0f}% at outliers, max {_short(attention.max())}",
                )
            )
        rows.append(row)
    for stream in streams.values():
        row = [None]
        for layer in layers:
            cosines = stream.similarity(layer, patch)
            drawn = heatmap(
                inspection.image, cosines, limits=(0.0, 1.0), patch=patch, height=_DRAWN
            )
            row.append(Panel(drawn, f"mean cosine {cosines.mean():.2f}"))
        rows.append(row)
    rows[0][0] = Panel(
        mark(_photo(inspection).resize(_drawn_size(inspection)), inspection.grid, patch=patch)
    )
    return Sheet(
        rows,
        ["chosen patch", *(f"layer {layer}" for layer in layers)],
        [*(f"attention {when}" for when in streams), *(f"cosine {when}" for when in streams)],
        legend=[(f"outliers by {detector} before purification", OUTLIER)],
        bar=("0", "each map's maximal attention, square-root scale; cosine 1"),
        height=_HEIGHT,
        heading=f"The patch at row {patch[0]}, column {patch[1]} before and after purification by {purifier}",
    ).draw()


def feature_figure(inspection: Inspection, layers: Sequence[int] | None = None) -> Image.Image:
    """First three principal components of the patch tokens through the layers, and of the method's features, as colours.

    Args:
        layers: six spread over the model if None.

    Raises:
        SFPError: no such layer.
    """
    layers = _layers(inspection, layers)
    rows: list[list[Panel | None]] = []
    for stream in (inspection.plain, inspection.purified):
        maps = [
            Panel(colours_over(inspection.image, stream.pca(layer), _DRAWN)) for layer in layers
        ]
        rows.append([None if rows else Panel(_photo(inspection)), *maps, None])
    rows[-1][-1] = Panel(colours_over(inspection.image, inspection.feature_colours, _DRAWN))
    return Sheet(
        rows,
        [
            "image",
            *(f"layer {layer}" for layer in layers),
            f"{inspection.protocol['method']}'s features",
        ],
        ["plain", "purified"],
        height=_HEIGHT,
        heading="Principal components of the tokens, each map by its own",
    ).draw()


def _layers(inspection: Inspection, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return np.unique(np.linspace(1, inspection.layers, 6).round().astype(int)).tolist()
    for layer in layers:
        if layer not in range(1, inspection.layers + 1):
            raise SFPError(
                f"There is no layer {layer}; this model's layers go from 1 to {inspection.layers}."
            )
    return list(layers)


def _detector(stream: Stream, detector: str | None) -> str:
    if detector is None and stream.outliers:
        return next(iter(stream.outliers))
    if detector not in stream.outliers:
        raise unknown_choice("detector of this inspection", detector, stream.outliers)
    return detector


def _photo(inspection: Inspection) -> Image.Image:
    return Image.fromarray(inspection.image)


def _drawn_size(inspection: Inspection) -> tuple[int, int]:
    height, width = inspection.image.shape[:2]
    return round(width * _DRAWN / height), _DRAWN


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"
