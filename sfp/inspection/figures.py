"""Figures of an ``Inspection``, after those of the SFP paper (ICCV 2025), as PIL images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sfp import drawing
from sfp.errors import SFPError, unknown_choice
from sfp.inspection.inspection import Inspection
from sfp.inspection.stream import Stream

_ROOT = 0.5  # attention is drawn by its square root: its largest values dwarf the others


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
    stream, when = _stream(inspection, purified)
    layers, detector = _layers(inspection, layers), _detector(stream, detector)
    kinds = {"class-token attention": stream.cls_attention} if stream.class_token else {}
    kinds |= {
        "self-attention": stream.self_attention,
        "attention received": stream.received_attention,
    }
    heading = f"Attention in {inspection.protocol['model']}, {when}"
    figure, _, axes = _panels(inspection, layers, list(kinds), heading)
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
    stream, when = _stream(inspection, purified)
    layers = _layers(inspection, layers)
    detectors = [_detector(stream, detector) for detector in detectors or stream.outliers]
    heading = f"Outliers in {inspection.protocol['model']}, {when}"
    figure, _, axes = _panels(inspection, layers, [*detectors, "length"], heading)
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
            outliers = inspection.plain.outliers[detector][layer - 1]
            _add_attention(panel, inspection, stream.attention_of(layer, patch), outliers)
    for row, stream in zip(axes[2:], streams.values(), strict=True):
        for panel, layer in zip(row, layers, strict=True):
            cosines = stream.similarity(layer, patch)
            drawing.add_heat(panel, inspection.image, cosines, (0.0, 1.0))
            _caption(panel, f"mean {cosines.mean():.2f}")
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


def heads_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patch: tuple[int, int] | None = None,
    detector: str | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """What each head attends to: from the class token, or from a patch.

    Args:
        inspection: of one picture, with ``heads``.
        layers: all whose heads were asked for if None.
        heads: from 1; all if None.
        patch: (row, column); the class token, or the mean of all patches without one, if None.
        detector: the one whose outliers are outlined and whose share of the attention stands below;
            the first of the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer, head, patch or detector, or heads that were not asked for.
    """
    stream, when = _stream(inspection, purified)
    layers, detector = _asked(stream.heads, layers, "heads"), _detector(stream, detector)
    maps = [stream.attention_by_head(layer, patch) for layer in layers]
    count = len(maps[0])
    for head in heads or ():
        if head not in range(1, count + 1):
            raise SFPError(f"There is no head {head}; this model's heads go from 1 to {count}.")
    heads = list(heads or range(1, count + 1))
    of = "the class token" if stream.class_token else "the patches' mean"
    if patch is not None:
        of = f"the patch at row {patch[0]}, column {patch[1]}"
    heading = f"Attention of {of} in {inspection.protocol['model']}, head by head, {when}"
    sides = [f"head {head}" for head in heads]
    figure, photo, axes = _panels(inspection, layers, sides, heading)
    for row, head in zip(axes, heads, strict=True):
        for panel, layer, own in zip(row, layers, maps, strict=True):
            outliers = stream.outliers[detector][layer - 1]
            _add_attention(panel, inspection, own[head - 1], outliers)
    if patch is not None:
        for panel in (photo, *axes.flat):
            drawing.add_frame(panel, patch)
    _colorbar(figure, axes, "of each map's maximum", power=_ROOT)
    drawing.add_legend(figure, [(f"outliers by {detector}", drawing.OUTLIER)], outlined=True)
    return drawing.to_image(figure)


def mlp_figure(
    inspection: Inspection,
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    detector: str | None = None,
    *,
    purified: bool = False,
) -> Image.Image:
    """Activations of the MLP's hidden units at the patches.

    Args:
        inspection: of one picture, with ``mlp``.
        layers: all whose MLP was asked for if None.
        units: from 0, of every layer; of each layer the six strongest at the outliers if None, see
            ``Stream.strongest_units``.
        detector: the one whose outliers are outlined, and where the mean stands below; the first of
            the inspection if None.
        purified: of the purified stream instead of the plain one.

    Raises:
        SFPError: no such layer, unit or detector, or an MLP that was not asked for.
    """
    stream, when = _stream(inspection, purified)
    layers, detector = _asked(stream.mlp, layers, "mlp"), _detector(stream, detector)
    chosen = [list(units or stream.strongest_units(layer, detector)) for layer in layers]
    sides = [f"unit {unit}" for unit in units or ()]
    if not units:
        sides = ["strongest", *(f"no. {place}" for place in range(2, len(chosen[0]) + 1))]
    heading = f"Hidden units of the MLPs in {inspection.protocol['model']}, {when}"
    figure, _, axes = _panels(inspection, layers, sides, heading)
    for column, layer, own in zip(axes.T, layers, chosen, strict=True):
        outliers = stream.outliers[detector][layer - 1]
        for panel, unit, values in zip(column, own, stream.activations(layer, own), strict=True):
            drawing.add_heat(panel, inspection.image, values)
            drawing.add_outline(panel, outliers)
            said = f"mean {values[~outliers].mean():.2f}"
            if outliers.any():
                said = f"at outliers {values[outliers].mean():.2f}, off them {said[5:]}"
            _caption(panel, f"unit {unit}\n{said}")
    _colorbar(figure, axes, "from 0 or the least to the largest of each map")
    drawing.add_legend(figure, [(f"outliers by {detector}", drawing.OUTLIER)], outlined=True)
    return drawing.to_image(figure)


def _stream(inspection: Inspection, purified: bool) -> tuple[Stream, str]:
    """One of an inspection's two streams, and words for it."""
    if purified:
        return inspection.purified, "with repair"
    return inspection.plain, "without repair"


def _panels(
    inspection: Inspection,
    layers: Sequence[int],
    sides: Sequence[str],
    heading: str,
    first: str = "image",
) -> tuple[Figure, Axes, np.ndarray]:
    """A figure, its panel at the top left with the picture, and those of the layers."""
    titles = [first, *(f"layer {layer}" for layer in layers)]
    shape = inspection.image.shape[:2]
    figure, axes = drawing.panels(len(sides), len(titles), shape, titles=titles, heading=heading)
    for panel, side in zip(axes[:, 1], sides, strict=True):
        panel.set_ylabel(side, fontsize=10)
    drawing.add_picture(axes[0, 0], inspection.image, inspection.grid)
    return figure, axes[0, 0], axes[:, 1:]


def _add_attention(
    panel: Axes, inspection: Inspection, attention: np.ndarray, outliers: np.ndarray
) -> None:
    """A map (h, w) of attention with the outliers' outlines and their share of it."""
    drawing.add_heat(panel, inspection.image, attention, power=_ROOT)
    drawing.add_outline(panel, outliers)
    share = 100 * attention[outliers].sum()
    _caption(panel, f"{share:.0f}% at outliers, max {_short(attention.max())}")


def _caption(panel: Axes, text: str) -> None:
    panel.set_xlabel(text, fontsize=8, color="dimgrey", labelpad=2)


def _colorbar(figure: Figure, axes: np.ndarray, label: str, power: float = 1.0) -> None:
    """A bar from 0 to 1 in the colours of heat at the right of rows of panels."""
    colours = drawing.heat_colours(power)
    bar = figure.colorbar(colours, ax=axes, fraction=0.02, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def spread_layers(count: int) -> list[int]:
    """Six of a model's layers, the first and the last among them; all of a smaller model."""
    return np.unique(np.linspace(1, count, 6).round().astype(int)).tolist()


def _asked(kept: Mapping[int, np.ndarray], layers: Sequence[int] | None, option: str) -> list[int]:
    """The layers that are given, which the stream checks, or all that are kept."""
    if not (layers or kept):
        raise SFPError(f"No layer's {option} were asked for; inspect with {option}=[11].")
    return list(layers or kept)


def _layers(inspection: Inspection, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return spread_layers(inspection.layers)
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
