"""Maps of patches over a picture and sheets of panels, drawn with matplotlib, as PIL images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, withStroke
from PIL import Image

Colour: TypeAlias = tuple[int, int, int]
OUTLIER: Colour = (0, 232, 255)
MASK: Colour = (235, 30, 60)
HEAT = "inferno"
_DPI = 100


def add_heat(
    axes: Axes,
    picture: np.ndarray,
    values: np.ndarray,
    limits: tuple[float, float] | None = None,
    power: float = 1.0,
) -> None:
    """Draw values of patches (h, w) as colours over the grey picture (H, W, 3) uint8.

    The axes then count patches. ``limits`` are the values of the darkest and the brightest colour
    (0, or the least if negative, and the largest if None), ``power`` that of a scale between them.
    """
    least, most = limits or (min(0.0, float(values.min())), float(values.max()))
    norm = PowerNorm(power, least, max(most, least + 1e-12), clip=True)
    grey = 50 + 0.8 * picture.mean(-1)  # lifted, so that dark photographs stay readable
    opacity = 0.66 + 0.2 * np.asarray(norm(values))
    add_picture(axes, np.repeat(grey[..., None], 3, -1).clip(0, 255) / 255, values.shape)
    axes.imshow(
        values,
        HEAT,
        norm,
        alpha=opacity,
        interpolation="nearest",
        extent=(0, values.shape[1], values.shape[0], 0),
        aspect=axes.get_aspect(),
    )


def heat_colours(power: float = 1.0) -> ScalarMappable:
    """The colours of a map between its limits, 0 to 1, for a colour bar."""
    return ScalarMappable(PowerNorm(power, 0, 1), HEAT)


def add_picture(
    axes: Axes, picture: np.ndarray, grid: tuple[int, int], interpolation: str = "bicubic"
) -> None:
    """Draw a picture (H, W, 3), uint8 or in [0, 1], that a grid (h, w) of patches covers."""
    height, width = grid
    shape = picture.shape[0] / height / (picture.shape[1] / width)  # of a patch: height by width
    axes.imshow(picture, extent=(0, width, height, 0), aspect=shape, interpolation=interpolation)
    axes.set(xticks=[], yticks=[])


def add_mask(axes: Axes, picture: np.ndarray, mask: np.ndarray, colour: Colour = MASK) -> None:
    """Fill the patches of a mask (h, w) bool with a colour over the pale picture."""
    pale = 0.62 * (0.5 * picture + 0.5 * picture.mean(-1, keepdims=True)) + 0.38 * 255
    add_picture(axes, pale / 255, mask.shape)
    filled = np.zeros((*mask.shape, 4))
    filled[mask] = (*np.divide(colour, 255), 0.8)
    extent = (0, mask.shape[1], mask.shape[0], 0)
    axes.imshow(filled, interpolation="nearest", extent=extent, aspect=axes.get_aspect())


def add_outline(axes: Axes, mask: np.ndarray) -> None:
    """Draw the rim of a mask of patches (h, w) bool."""
    padded = np.pad(mask, 1)
    rows = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # a rim above patch (y, x)
    columns = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # a rim at its left
    lines = [[(x, y), (x + 1, y)] for y, x in rows] + [[(x, y), (x, y + 1)] for y, x in columns]
    axes.add_collection(
        LineCollection(lines, colors=[np.divide(OUTLIER, 255)], linewidths=1.2), autolim=False
    )


def add_frame(axes: Axes, patch: tuple[int, int]) -> None:
    """Frame the patch at (row, column)."""
    frame = Rectangle(patch[::-1], 1, 1, fill=False, edgecolor="white", linewidth=1.6)
    frame.set_path_effects([withStroke(linewidth=4, foreground="black"), Normal()])
    axes.add_patch(frame)


def heatmap(
    picture: np.ndarray,
    values: np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    power: float = 1.0,
    outliers: np.ndarray | None = None,
    patch: tuple[int, int] | None = None,
    height: int | None = None,
) -> Image.Image:
    """A map of patches as heat over a picture, without any margin.

    Args:
        picture: (H, W, 3) uint8, what the patches cover.
        values: (h, w) float.
        limits: values of the darkest and the brightest colour; 0 (or the least, if negative) and
            the largest if None.
        power: of the scale between the limits; 0.5 shows weak values beside a strong one.
        outliers: (h, w) bool; outlined.
        patch: (row, column) of a patch that is framed.
        height: of the drawing in pixels; the picture's own if None.
    """
    figure, axes = _bare(picture, height)
    add_heat(axes, picture, values, limits, power)
    return _finished(figure, axes, outliers, patch)


def mask_over(
    picture: np.ndarray, mask: np.ndarray, colour: Colour = MASK, height: int | None = None
) -> Image.Image:
    """A mask of patches (h, w) bool as filled squares over the pale picture (H, W, 3) uint8."""
    figure, axes = _bare(picture, height)
    add_mask(axes, picture, mask, colour)
    return _finished(figure, axes)


def mark(
    drawn: Image.Image,
    grid: tuple[int, int],
    *,
    outliers: np.ndarray | None = None,
    patch: tuple[int, int] | None = None,
) -> Image.Image:
    """A drawing with the rim of a mask of patches and the frame of one patch drawn into it."""
    pixels = np.asarray(drawn.convert("RGB"))
    figure, axes = _bare(pixels)
    add_picture(axes, pixels, grid)
    return _finished(figure, axes, outliers, patch)


def panels(
    rows: int,
    columns: int,
    shape: tuple[int, int],
    height: int = 170,
    *,
    titles: Sequence[str] = (),
    heading: str = "",
) -> tuple[Figure, np.ndarray]:
    """A figure with rows of empty panels for pictures of one shape.

    Args:
        rows: how many.
        columns: how many.
        shape: (height, width) of the pictures, in any unit.
        height: of a panel in pixels.
        titles: above the columns, or none.
        heading: above all.

    Returns:
        The figure and its axes (rows, columns).
    """
    inches = height / _DPI
    size = (columns * (inches * shape[1] / shape[0] + 0.1) + 0.4, rows * (inches + 0.35) + 0.6)
    figure = Figure(size, _DPI, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set_visible(False)
    for each, title in zip(axes[0], titles, strict=False):
        each.set_title(title, fontsize=10, parse_math=False)
    if heading:
        figure.suptitle(heading, fontsize=12, x=0.01, ha="left", parse_math=False, wrap=True)
    return figure, axes


def sheet(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    legend: Sequence[tuple[str, Colour]],
    height: int,
) -> Image.Image:
    """Pictures (H, W, 3) uint8 of one shape in rows, each under its title, and a legend below."""
    columns = max(map(len, rows))
    figure, axes = panels(len(rows), columns, rows[0][0][1].shape[:2], height)
    for row, pictures in zip(axes, rows, strict=True):
        for each, (title, picture) in zip(row, pictures, strict=False):
            add_picture(each, picture, picture.shape[:2])
            each.set_title(title, fontsize=10, parse_math=False)
    add_legend(figure, legend)
    return to_image(figure)


def add_legend(
    figure: Figure,
    entries: Sequence[tuple[str, Colour]],
    *,
    outlined: bool = False,
    **options: object,
) -> Legend:
    """A legend of swatches with their texts, in as many columns as the figure is wide for.

    ``outlined`` swatches are empty frames, for what ``add_outline`` draws.
    """
    swatches = [
        Patch(facecolor="none", edgecolor=np.divide(colour, 255), linewidth=1.6)
        if outlined
        else Patch(facecolor=np.divide(colour, 255), edgecolor="black", linewidth=0.5)
        for _, colour in entries
    ]
    options = {"loc": "outside lower center", "frameon": False, "fontsize": 10, **options}
    look = {"handlelength": 1.0, "handleheight": 1.0, "columnspacing": 1.5}

    def drawn(columns: int) -> Legend:
        # the texts are set afterwards: "_cat" would be left out, and "$" starts a formula
        legend = figure.legend(swatches, ["text"] * len(entries), ncols=columns, **look, **options)
        for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
            text.set(text=name, parse_math=False)
        return legend

    single = drawn(1)
    widest = single.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
    single.remove()
    lines = math.ceil(len(entries) / max(1, math.floor(figure.bbox.width / widest)))
    return drawn(math.ceil(len(entries) / lines))


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """A picture, pixel by pixel, with a legend below it; a narrow one gets a wider sheet."""
    if not entries:
        return picture
    figure = Figure((picture.width / _DPI, 1), _DPI)
    size = max(8.0, picture.width / 55)
    legend = add_legend(figure, entries, loc="upper left", fontsize=size, borderaxespad=0.3)
    extent = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    width, height = max(picture.width, math.ceil(extent.width) + 4), math.ceil(extent.height) + 8
    figure.set_size_inches(width / _DPI, height / _DPI)
    sheet = Image.new("RGB", (width, picture.height + height), "white")
    sheet.paste(picture)
    sheet.paste(to_image(figure), (0, picture.height))
    return sheet


def to_image(figure: Figure) -> Image.Image:
    """The figure as an RGB picture of its own size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _bare(picture: np.ndarray, height: int | None = None) -> tuple[Figure, Axes]:
    """A figure of the picture's shape that one pair of axes fills."""
    height = height or picture.shape[0]
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    figure = Figure((width / _DPI, height / _DPI), _DPI)
    return figure, figure.add_axes((0, 0, 1, 1), frame_on=False)


def _finished(
    figure: Figure,
    axes: Axes,
    outliers: np.ndarray | None = None,
    patch: tuple[int, int] | None = None,
) -> Image.Image:
    axes.set_aspect("auto")  # a rounded width leaves no margin
    if outliers is not None:
        add_outline(axes, outliers)
    if patch is not None:
        add_frame(axes, patch)
    return to_image(figure)
