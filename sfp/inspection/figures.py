"""Figures of an ``Inspection``, after those of the SFP paper (ICCV 2025), as PIL images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sfp import drawing
from sfp.errors import unknown_choice
from sfp.inspection.inspection import Inspection, Stream

_ROOT = 0.5  # attention is drawn by its square root: its largest values dwarf the others
_WHEN = {"plain": "without repair", "purified": "with repair"}


def attention_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    detector: str | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """After Fig. 1: attention in each layer, of the class token, to themselves, and received.

    Without a class token the latter two alone.

    Args:
        inspection: of one picture.
        layers: six spread over the model if None.
        detector: the one whose outliers are outlined; the first of the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer or detector.
    """
    which = "purified" if purified else "plain"
    stream = getattr(inspection, which)
    layers, detector = _layers(inspection, layers), _detector(stream, detector)
    kinds = {"class-token attention": stream.cls_attention} if stream.class_token else {}
    kinds |= {
        "self-attention": stream.self_attention,
        "attention received": stream.received_attention,
    }
    heading = f"Attention in {inspection.protocol['model']}, {_WHEN[which]}"
    figure, photo, axes = _panels(inspection, layers, list(kinds), heading)
    drawing.add_picture(photo, inspection.image, inspection.grid)
    for row, maps in zip(axes, kinds.values(), strict=True):
        for panel, layer in zip(row, layers, strict=True):
            drawing.add_heat(panel, inspection.image, maps[layer - 1], power=_ROOT)
            drawing.add_outline(panel, stream.outliers[detector][layer - 1])
            _caption(panel, f"max {_short(maps[layer - 1].max())}")
    _colorbar(figure, axes, "of each map's maximum", power=_ROOT)
    drawing.add_legend(figure, [(f"outliers by {detector}", drawing.OUTLIER)], outlined=True)
    return drawing.to_image(figure)


def outlier_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    detectors: Sequence[str] | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """After Fig. 3: what each detector takes for outliers through the layers, and tokens' norms.

    Args:
        inspection: of one picture.
        layers: six spread over the model if None.
        detectors: all of the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer or detector.
    """
    which = "purified" if purified else "plain"
    stream = getattr(inspection, which)
    layers = _layers(inspection, layers)
    detectors = [_detector(stream, detector) for detector in detectors or stream.outliers]
    heading = f"Outliers in {inspection.protocol['model']}, {_WHEN[which]}"
    figure, photo, axes = _panels(inspection, layers, [*detectors, "length"], heading)
    drawing.add_picture(photo, inspection.image, inspection.grid)
    for row, detector in zip(axes[:-1], detectors, strict=True):
        for panel, layer in zip(row, layers, strict=True):
            mask = stream.outliers[detector][layer - 1]
            drawing.add_mask(panel, inspection.image, mask)
            _caption(panel, f"{mask.sum()} of {mask.size}")
    for panel, layer in zip(axes[-1], layers, strict=True):
        drawing.add_heat(panel, inspection.image, stream.norms[layer - 1])
        _caption(panel, f"max {_short(stream.norms[layer - 1].max())}")
    _colorbar(figure, axes[-1:], "of the maximum")
    drawing.add_legend(figure, [("outliers", drawing.MASK)])
    return drawing.to_image(figure)


def patch_figure(
    inspection: Inspection,
    patch: tuple[int, int],
    layers: Sequence[int] | None = None,
    detector: str | None = None,
) -> Image.Image:
    """After Fig. 5: a patch's attention and similarities before and after purification.

    Args:
        inspection: of one picture.
        patch: (row, column).
        layers: six spread over the model if None.
        detector: the one whose outliers in the plain stream are outlined in the attention maps, and
            whose share of the patch's attention stands below; the first of the inspection if None.

    Raises:
        SFPError: no such patch, layer or detector.
    """
    layers, detector = _layers(inspection, layers), _detector(inspection.plain, detector)
    streams = {"before": inspection.plain, "after": inspection.purified}
    sides = [f"{kind} {when}" for kind in ("attention", "cosine") for when in streams]
    purifier = inspection.protocol["purifier"].partition("(")[0]
    heading = f"The patch at row {patch[0]}, column {patch[1]}, purified by {purifier}"
    figure, photo, axes = _panels(inspection, layers, sides, heading, "chosen patch")
    for row, stream in zip(axes[:2], streams.values(), strict=True):
        for panel, layer in zip(row, layers, strict=True):
            attention = stream.attention_of(layer, patch)
            outliers = inspection.plain.outliers[detector][layer - 1]
            drawing.add_heat(panel, inspection.image, attention, power=_ROOT)
            drawing.add_outline(panel, outliers)
            share = 100 * attention[outliers].sum()
            _caption(panel, f"{share:.0f}% at outliers, max {_short(attention.max())}")
    for row, stream in zip(axes[2:], streams.values(), strict=True):
        for panel, layer in zip(row, layers, strict=True):
            cosines = stream.similarity(layer, patch)
            drawing.add_heat(panel, inspection.image, cosines, (0.0, 1.0))
            _caption(panel, f"mean {cosines.mean():.2f}")
    drawing.add_picture(photo, inspection.image, inspection.grid)
    for panel in (photo, *axes.flat):
        drawing.add_frame(panel, patch)
    _colorbar(figure, axes[:2], "of each map's maximum", power=_ROOT)
    _colorbar(figure, axes[2:], "cosine")
    legend = [(f"outliers by {detector} before purification", drawing.OUTLIER)]
    drawing.add_legend(figure, legend, outlined=True)
    return drawing.to_image(figure)


def feature_figure(inspection: Inspection, layers: Sequence[int] | None = None) -> Image.Image:
    """First three principal components of the tokens through the layers, and of the features.

    Args:
        inspection: of one picture.
        layers: six spread over the model if None.

    Raises:
        SFPError: no such layer.
    """
    layers = _layers(inspection, layers)
    streams = {"without repair": inspection.plain, "with repair": inspection.purified}
    titles = [
        "image",
        *(f"layer {layer}" for layer in layers),
        f"{inspection.protocol['method']}'s features",
    ]
    heading = "First three principal components of each map of tokens, as colours"
    figure, axes = drawing.panels(
        2, len(titles), inspection.image.shape[:2], titles=titles, heading=heading
    )
    drawing.add_picture(axes[0, 0], inspection.image, inspection.grid)
    for row, (side, stream) in zip(axes, streams.items(), strict=True):
        row[1].set_ylabel(side, fontsize=10)
        maps = [stream.pca(layer) for layer in layers]
        for panel, colours in zip(row[1:-1], maps, strict=True):
            drawing.add_picture(panel, colours, inspection.grid, "nearest")
    drawing.add_picture(axes[1, -1], inspection.feature_colours, inspection.grid, "nearest")
    axes[0, -1].set_title("")
    axes[1, -1].set_title(titles[-1], fontsize=10)
    return drawing.to_image(figure)


def _panels(
    inspection: Inspection,
    layers: Sequence[int],
    sides: Sequence[str],
    heading: str,
    first: str = "image",
) -> tuple[Figure, Axes, np.ndarray]:
    """A figure, its panel for the picture at the top left, and those of the layers."""
    titles = [first, *(f"layer {layer}" for layer in layers)]
    shape = inspection.image.shape[:2]
    figure, axes = drawing.panels(len(sides), len(titles), shape, titles=titles, heading=heading)
    for panel, side in zip(axes[:, 1], sides, strict=True):
        panel.set_ylabel(side, fontsize=10)
    return figure, axes[0, 0], axes[:, 1:]


def _caption(panel: Axes, text: str) -> None:
    panel.set_xlabel(text, fontsize=8, color="dimgrey", labelpad=2)


def _colorbar(figure: Figure, axes: np.ndarray, label: str, power: float = 1.0) -> None:
    """A bar from 0 to 1 in the colours of heat at the right of rows of panels."""
    colours = drawing.heat_colours(power)
    bar = figure.colorbar(colours, ax=axes, fraction=0.02, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _layers(inspection: Inspection, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return np.unique(np.linspace(1, inspection.layers, 6).round().astype(int)).tolist()
    for layer in layers:
        inspection.plain.require_layer(layer)
    return list(layers)


def _detector(stream: Stream, detector: str | None) -> str:
    if detector is None and stream.outliers:
        return next(iter(stream.outliers))
    if detector not in stream.outliers:
        raise unknown_choice("detector of this inspection", detector, stream.outliers)
    return detector


def _short(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 else f"{value:.3f}" if value < 1 else f"{value:.1f}"
