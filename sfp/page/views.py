"""What the page shows of a result: HTML fragments, and the drawings of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from sfp import Inspection, Segmentation
from sfp.drawing import Colour, heatmap, mark, mask_over
from sfp.result import Pixel

HEIGHT = 448  # of the drawings of a layer
_MOST_SCORES = 6
_ROOT = 0.5  # attention is drawn by its square root: its largest values dwarf the others


def status(text: str, error: bool = False) -> str:
    """One sentence about what was done, or what went wrong."""
    kind = "error" if error else "done"
    return f'<p class="sfp-status sfp-{kind}" role="{"alert" if error else "status"}">{escape(text)}</p>'


def hint(text: str) -> str:
    """A pale sentence about what can be done."""
    return f'<p class="sfp-hint">{escape(text)}</p>'


def legend(result: Segmentation) -> str:
    """A swatch, the name and the share of the picture for each name that occurs, largest first."""
    entries = [
        f'<li>{_swatch(colour)}<span class="sfp-name">{escape(text)}</span></li>'
        for text, colour in result.legend
    ]
    missing = [escape(name) for name in result.names if name not in result.areas]
    note = f'<p class="sfp-hint">Not found: {", ".join(missing)}.</p>' if missing else ""
    return f'<ul class="sfp-legend">{"".join(entries)}</ul>{note}'


def pixel(found: Pixel, result: Segmentation, x: int, y: int) -> str:
    """The name under a click and the best scores there, as bars."""
    colours = dict(zip(result.names, result.palette.tolist(), strict=True))
    rows = [
        f"<tr><th>{_swatch(tuple(colours[name]))}{escape(name)}</th>"
        f'<td><span class="sfp-bar" style="width:{100 * score:.1f}%"></span></td><td class="sfp-number">{100 * score:.1f}%</td></tr>'
        for name, score in list(found.scores.items())[:_MOST_SCORES]
    ]
    left = len(found.scores) - len(rows)
    more = f'<p class="sfp-hint">and {left} more</p>' if left > 0 else ""
    place = f'<p class="sfp-found">At x {x}, y {y}: <b>{escape(found.name)}</b></p>'
    return f'<div class="sfp-pixel">{place}<table class="sfp-table">{"".join(rows)}</table>{more}</div>'


def comparison(results: dict[str, Segmentation]) -> str:
    """The share of each name by each method, and where the methods agree."""
    first, second = results.values()
    colours = dict(zip(first.names, first.palette.tolist(), strict=True))
    seen = dict.fromkeys([*first.areas, *second.areas])
    head = "".join(f'<th class="sfp-number">{escape(title)}</th>' for title in results)
    rows = [
        f"<tr><th>{_swatch(tuple(colours[name]))}{escape(name)}</th>"
        + "".join(
            f'<td class="sfp-number">{100 * result.areas.get(name, 0):.1f}%</td>'
            for result in results.values()
        )
        + "</tr>"
        for name in seen
    ]
    agreed = 100 * float((first.labels == second.labels).mean())
    note = f'<p class="sfp-found">The two agree on <b>{agreed:.0f}%</b> of the pixels.</p>'
    return f'{note}<table class="sfp-table sfp-shares"><tr><th>share of the picture</th>{head}</tr>{"".join(rows)}</table>'


@dataclass(frozen=True)
class LayerViews:
    """One layer of an inspection, drawn: all of one size."""

    chosen: Image.Image
    outliers: Image.Image
    class_token: Image.Image
    before: Image.Image
    after: Image.Image
    caption: str


def draw_layer(inspection: Inspection, layer: int, patch: tuple[int, int]) -> LayerViews:
    """The views of a layer and a patch (row, column).

    Raises:
        SFPError: no such layer or patch.
    """
    before, after = (
        inspection.plain.attention_of(layer, patch),
        inspection.purified.attention_of(layer, patch),
    )
    (detector, masks), picture = next(iter(inspection.plain.outliers.items())), inspection.image
    mask = masks[layer - 1]

    def heat(values: np.ndarray, framed: bool) -> Image.Image:
        return heatmap(
            picture,
            values,
            power=_ROOT,
            outliers=mask,
            patch=patch if framed else None,
            height=HEIGHT,
        )

    photo = Image.fromarray(picture).resize(
        (round(picture.shape[1] * HEIGHT / picture.shape[0]), HEIGHT), Image.Resampling.BICUBIC
    )
    shares = [100 * float(attention[mask].sum()) for attention in (before, after)]
    purifier = inspection.protocol["purifier"].partition("(")[0]
    layers = inspection.protocol["purified_layers"]
    spread = (
        f"layers {layers[0]} to {layers[-1]}"
        if len(layers) > 1
        else f"layer {layers[0]}"
        if layers
        else "no layer"
    )
    same = (
        ""
        if layers and layer > layers[0]
        else " No layer before this one is repaired, so both are the same."
    )
    found = f"<b>{mask.sum()} of {mask.size}</b> patches are outliers by {escape(detector)}"
    before_after = f"<b>{shares[0]:.0f}%</b> of its attention before and <b>{shares[1]:.0f}%</b> after purification"
    caption = (
        f'<p class="sfp-found">Layer {layer} of {inspection.layers}: {found}. The patch at row {patch[0]}, column {patch[1]} gives them '
        f"{before_after} by {escape(purifier)} after {spread}.{same}</p>"
    )
    return LayerViews(
        chosen=mark(photo, inspection.grid, patch=patch),
        outliers=mask_over(picture, mask, height=HEIGHT),
        class_token=heat(inspection.plain.cls_attention[layer - 1], framed=False),
        before=heat(before, framed=True),
        after=heat(after, framed=True),
        caption=caption,
    )


def _swatch(colour: Colour) -> str:
    red, green, blue = colour
    return f'<span class="sfp-swatch" style="background:rgb({red},{green},{blue})"></span>'
