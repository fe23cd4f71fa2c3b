"""Drawing with Pillow alone: legends, heat maps over a picture, and sheets of titled panels as in papers' figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
INK, PALE_INK, PAPER = (28, 30, 36), (110, 114, 122), (255, 255, 255)
OUTLIER, CHOSEN = (0, 232, 255), (255, 255, 255)
_HEAT = np.array(
    [
        (8, 6, 30),
        (62, 18, 106),
        (140, 32, 110),
        (210, 62, 76),
        (246, 130, 40),
        (252, 206, 90),
        (255, 252, 210),
    ],
    float,
)


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet, with a line of text below it."""

    picture: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """Panels in rows under column titles, row titles at the left, and a legend below.

    Attributes:
        rows: panels; None leaves a place empty.
        titles: of the columns.
        sides: titles of the rows, or none.
        legend: texts with the colours of their swatches.
        bar: the texts at both ends of a colour bar of ``heat``, if there is one.
        height: of the panels in pixels.
        heading: a line above all.
    """

    rows: Sequence[Sequence[Panel | None]]
    titles: Sequence[str]
    sides: Sequence[str] = ()
    legend: Sequence[tuple[str, Colour]] = ()
    bar: tuple[str, str] | None = None
    height: int = 170
    heading: str = ""

    def draw(self) -> Image.Image:
        """The whole sheet."""
        size = max(11, self.height // 12)
        gap, line = max(4, self.height // 24), round(size * 1.6)
        pictures = [
            [panel and _of_height(panel.picture, self.height) for panel in row] for row in self.rows
        ]
        columns = [
            max([round(_width(title, size)), *(picture.width for picture in column if picture)])
            for title, column in zip(self.titles, zip(*pictures, strict=True), strict=True)
        ]
        captions = any(panel and panel.caption for row in self.rows for panel in row)
        step = self.height + gap + (line if captions else 0)
        left = gap + (line if any(self.sides) else 0)
        top = gap + (line + gap if self.heading else 0) + line
        width = left + sum(columns) + gap * len(columns)
        footer = _footer(self.legend, self.bar, width - 2 * gap, size)
        sheet = Image.new(
            "RGB",
            (width, top + step * len(self.rows) + (footer.height + gap if footer else 0)),
            PAPER,
        )
        draw = ImageDraw.Draw(sheet)
        if self.heading:
            draw.text(
                (left, gap + line / 2),
                self.heading,
                fill=INK,
                font_size=round(size * 1.15),
                anchor="lm",
            )
        for row, (panels, sized) in enumerate(zip(self.rows, pictures, strict=True)):
            x, y = left, top + row * step
            for title, span, panel, picture in zip(
                self.titles, columns, panels, sized, strict=True
            ):
                if row == 0:
                    draw.text(
                        (x + span / 2, y - line / 2), title, fill=INK, font_size=size, anchor="mm"
                    )
                if panel and picture:
                    sheet.paste(picture, (x + (span - picture.width) // 2, y))
                    draw.text(
                        (x + span / 2, y + self.height + line / 2),
                        panel.caption,
                        fill=PALE_INK,
                        font_size=round(size * 0.85),
                        anchor="mm",
                    )
                x += span + gap
            if row < len(self.sides):
                side = _sideways(self.sides[row], size, line)
                sheet.paste(side, (gap, y + (self.height - side.height) // 2))
        if footer:
            sheet.paste(footer, (gap, sheet.height - footer.height - gap // 2))
        return sheet


def heat(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) float in [0, 255] of values in [0, 1], dark over red to bright."""
    at = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    below = np.minimum(at.astype(int), len(_HEAT) - 2)
    share = (at - below)[..., None]
    return _HEAT[below] * (1 - share) + _HEAT[below + 1] * share


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
    """A map of patches as heat over a picture.

    Args:
        picture: (H, W, 3) uint8, what the patches cover.
        values: (h, w) float.
        limits: the values of the darkest and the brightest colour; 0 (or the least, if negative) and the largest if None.
        power: of the values between the limits; 0.5 shows weak ones beside a strong one.
        outliers: (h, w) bool; outlined.
        patch: (row, column) of a patch that is framed.
        height: of the drawing in pixels; the picture's own if None.
    """
    least, most = limits or (min(0.0, float(values.min())), float(values.max()))
    level = np.clip((values - least) / max(most - least, 1e-12), 0, 1) ** power
    size = _size_of_height(picture, height)
    level = np.asarray(
        Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    )[..., None]
    grey = np.asarray(
        Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BICUBIC), float
    )[..., None]
    share = 0.64 + 0.2 * level  # of the heat; a lifted grey keeps dark photographs readable
    shown = heat(level[..., 0]) * share + (50 + 0.8 * grey) * (1 - share)
    drawn = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    return mark(drawn, values.shape, outliers=outliers, patch=patch)


def mask_over(
    picture: np.ndarray, mask: np.ndarray, colour: Colour = (235, 30, 60), height: int | None = None
) -> Image.Image:
    """A mask of patches (h, w) bool as filled squares over the pale picture (H, W, 3) uint8."""
    size = _size_of_height(picture, height)
    shown = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), float)
    shown = 0.5 * shown + 0.5 * shown.mean(-1, keepdims=True)  # paler
    shown = 0.62 * shown + 0.38 * 255
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))[..., None]
    shown = np.where(inside, 0.2 * shown + 0.8 * np.array(colour, float), shown)
    return Image.fromarray(shown.round().astype(np.uint8))


def colours_over(
    picture: np.ndarray, colours: np.ndarray, height: int | None = None
) -> Image.Image:
    """Colours of patches (h, w, 3) in [0, 1] at the size of the picture (H, W, 3)."""
    patches = Image.fromarray((colours * 255).round().clip(0, 255).astype(np.uint8))
    return patches.resize(_size_of_height(picture, height), Image.Resampling.NEAREST)


def mark(
    drawn: Image.Image,
    grid: tuple[int, int],
    *,
    outliers: np.ndarray | None = None,
    patch: tuple[int, int] | None = None,
) -> Image.Image:
    """A drawing with the rims of a mask of patches and the frame of one patch drawn into it."""
    draw = ImageDraw.Draw(drawn)
    rows = np.linspace(0, drawn.height, grid[0] + 1).round().astype(int)
    columns = np.linspace(0, drawn.width, grid[1] + 1).round().astype(int)
    thick = max(1, drawn.height // 140)
    if outliers is not None:
        padded = np.pad(outliers, 1)
        for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):  # rims between rows
            draw.line(
                (
                    columns[x],
                    _within(rows[y], drawn.height),
                    columns[x + 1],
                    _within(rows[y], drawn.height),
                ),
                OUTLIER,
                thick,
            )
        for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
            draw.line(
                (
                    _within(columns[x], drawn.width),
                    rows[y],
                    _within(columns[x], drawn.width),
                    rows[y + 1],
                ),
                OUTLIER,
                thick,
            )
    if patch is not None:
        box = (columns[patch[1]], rows[patch[0]], columns[patch[1] + 1] - 1, rows[patch[0] + 1] - 1)
        wide = max(2, drawn.height // 75)
        draw.rectangle(
            (box[0] - wide, box[1] - wide, box[2] + wide, box[3] + wide), outline=INK, width=wide
        )
        draw.rectangle(box, outline=CHOSEN, width=wide)
    return drawn


def with_legend(picture: Image.Image, legend: Sequence[tuple[str, Colour]]) -> Image.Image:
    """A picture with swatches and their texts in rows below it; a narrow picture gets a wider sheet."""
    size = max(11, picture.width // 40)
    widest = max((round(_entry_width(text, size)) for text, _ in legend), default=0)
    footer = _footer(legend, None, max(picture.width, widest), size)
    if footer is None:
        return picture
    sheet = Image.new("RGB", (footer.width, picture.height + footer.height + size // 2), PAPER)
    sheet.paste(picture)
    sheet.paste(footer, (0, picture.height + size // 2))
    return sheet


def _footer(
    legend: Sequence[tuple[str, Colour]], bar: tuple[str, str] | None, width: int, size: int
) -> Image.Image | None:
    """The colour bar and the legend's entries, in as many rows as they need."""
    if not legend and bar is None:
        return None
    line = round(size * 1.7)
    bar_width = round(_width("".join(bar), size) + 11 * size) if bar else 0
    places, x, row = [], bar_width, 0
    for text, _ in legend:
        if x + _entry_width(text, size) > width and x > 0:
            x, row = 0, row + 1
        places.append((round(x), row * line + line // 2))
        x += _entry_width(text, size)
    footer = Image.new("RGB", (width, line * (row + 1)), PAPER)
    draw = ImageDraw.Draw(footer)
    if bar:
        start = _width(bar[0], size) + size // 2
        draw.text((0, line / 2), bar[0], fill=INK, font_size=size, anchor="lm")
        ramp = Image.fromarray(
            heat(np.linspace(0, 1, 8 * size)[None].repeat(size, 0)).astype(np.uint8)
        )
        footer.paste(ramp, (round(start), (line - size) // 2))
        draw.text((start + 8.5 * size, line / 2), bar[1], fill=INK, font_size=size, anchor="lm")
    for (text, colour), (x, y) in zip(legend, places, strict=True):
        swatch = (x + size // 3, y - size // 2, x + size // 3 + size, y - size // 2 + size)
        draw.rectangle(swatch, fill=tuple(int(c) for c in colour), outline=INK)
        draw.text((x + 1.75 * size, y), text, fill=INK, font_size=size, anchor="lm")
    return footer


def _entry_width(text: str, size: int) -> float:
    return _width(text, size) + 2.75 * size


def _width(text: str, size: int) -> float:
    return ImageDraw.Draw(Image.new("L", (1, 1))).textlength(text, font_size=size)


def _sideways(text: str, size: int, line: int) -> Image.Image:
    strip = Image.new("RGB", (round(_width(text, size)) + 2, line), PAPER)
    ImageDraw.Draw(strip).text((1, line / 2), text, fill=INK, font_size=size, anchor="lm")
    return strip.rotate(90, expand=True)


def _of_height(picture: Image.Image, height: int) -> Image.Image:
    if picture.height == height:
        return picture
    return picture.resize(
        (max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS
    )


def _size_of_height(picture: np.ndarray, height: int | None) -> tuple[int, int]:
    """(width, height) of a drawing of the picture."""
    height = height or picture.shape[0]
    return max(1, round(picture.shape[1] * height / picture.shape[0])), height


def _within(at: int, length: int) -> int:
    """A line at the border is drawn inside it."""
    return min(max(at, 1), length - 2)
