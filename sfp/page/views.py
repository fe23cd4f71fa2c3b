"""What the page shows of a result: HTML fragments, and the drawings of one layer."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from sfp import Inspection, Segmentation
from sfp.drawing import Colour, heatmap, mark, mask_over

_MISSING = 20  # names that are listed as not found
HEIGHT = 448  # of the drawings of a layer, in pixels


def status(text: str, error: bool = False) -> str:
    """One sentence about what was done, or what went wrong."""
    kind, role = ("error", "alert") if error else ("done", "status")
    return f'<p class="sfp-status sfp-{kind}" role="{role}">{escape(text)}</p>'


def hint(text: str) -> str:
    """A pale sentence about what can be done."""
    return f'<p class="sfp-hint">{escape(text)}</p>'


def legend(result: Segmentation) -> str:
    """A swatch, the name and the share of the picture for each name that occurs, largest first."""
    entries = "".join(
        f'<li>{_swatch(colour)}<span class="sfp-name">{escape(text)}</span></li>'
        for text, colour in result.legend
    )
    missing = [name for name in result.names if name not in result.areas]
    more = f" and {len(missing) - _MISSING} more" if len(missing) > _MISSING else ""
    note = hint(f"Not found: {', '.join(missing[:_MISSING])}{more}.") if missing else ""
    return f'<ul class="sfp-legend">{entries}</ul>{note}'


def comparison(results: dict[str, Segmentation]) -> str:
    """The share of each name by each of two methods, and where the methods agree."""
    first, second = results.values()
    colours = dict(zip(first.names, first.palette.tolist(), strict=True))

    def row(name: str, cells: list[str]) -> str:
        numbers = "".join(f'<td class="sfp-number">{escape(cell)}</td>' for cell in cells)
        return f"<tr><th>{name}</th>{numbers}</tr>"

    rows = [row("share of the picture", list(results))]
    for name in dict.fromkeys([*first.areas, *second.areas]):
        shares = [f"{100 * result.areas.get(name, 0):.1f}%" for result in (first, second)]
        rows.append(row(_swatch(tuple(colours[name])) + escape(name), shares))
    agreed = 100 * float((first.labels == second.labels).mean())
    note = f'<p class="sfp-found">The two agree on <b>{agreed:.0f}%</b> of the pixels.</p>'
    return f'{note}<table class="sfp-table">{"".join(rows)}</table>'


def draw_layer(
    inspection: Inspection, layer: int, patch: tuple[int, int]
) -> tuple[str, Image.Image, Image.Image, Image.Image, Image.Image, Image.Image]:
    """A caption and five drawings of a layer (from 1) and a patch (row, column).

    The drawings: the picture with the patch, the outliers, what the class token attends to, what
    the patch attends to before purification, and after it.

    Raises:
        SFPError: no such layer or patch.
    """
    image = inspection.image
    before = inspection.plain.attention_of(layer, patch)
    after = inspection.purified.attention_of(layer, patch)
    ((detector, masks),) = inspection.plain.outliers.items()
    mask = masks[layer - 1]

    def heat(values: np.ndarray, patch: tuple[int, int] | None = None) -> Image.Image:
        # the square root, since a few values are far larger than the others
        return heatmap(image, values, power=0.5, outliers=mask, patch=patch, height=HEIGHT)

    width = round(image.shape[1] * HEIGHT / image.shape[0])
    photo = Image.fromarray(image).resize((width, HEIGHT), Image.Resampling.BICUBIC)
    drawings = (
        mark(photo, inspection.grid, patch=patch),
        mask_over(image, mask, height=HEIGHT),
        heat(inspection.plain.cls_attention[layer - 1]),
        heat(before, patch),
        heat(after, patch),
    )
    purifier = inspection.protocol["purifier"].partition("(")[0]
    layers = inspection.protocol["purified_layers"]
    where = f"layer {layers[0]}" if layers else "no layer"
    if len(layers) > 1:
        where = f"layers {layers[0]} to {layers[-1]}"
    text = (
        f"Layer {layer} of {inspection.layers}: <b>{mask.sum()} of {mask.size}</b> patches are "
        f"outliers by {escape(detector)}. The patch at row {patch[0]}, column {patch[1]} gives "
        f"them <b>{100 * before[mask].sum():.0f}%</b> of its attention before and "
        f"<b>{100 * after[mask].sum():.0f}%</b> after purification by {escape(purifier)} "
        f"after {where}."
    )
    if not layers or layer <= layers[0]:
        text += " No layer before this one is repaired, so both are the same."
    return f'<p class="sfp-found">{text}</p>', *drawings


def _swatch(colour: Colour) -> str:
    red, green, blue = colour
    return f'<span class="sfp-swatch" style="background:rgb({red},{green},{blue})"></span>'
