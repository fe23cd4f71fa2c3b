"""The brush of Toyland: sky, grounds and things, drawn on a picture and its label map at once."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw

Colour: TypeAlias = tuple[int, int, int]
_SKIES = (  # at the top and at the horizon
    ((88, 160, 230), (190, 222, 246)), ((120, 185, 240), (225, 240, 250)),
    ((60, 120, 200), (160, 200, 240)), ((235, 140, 110), (250, 205, 150)),
    ((28, 32, 78), (70, 80, 140)), ((150, 165, 185), (200, 208, 218)),
)  # fmt: skip
_SUPERSAMPLE = 2  # drawn twice as large and averaged down, so that edges are smooth


class Canvas:
    """Draws the same shape on the picture (in its colour) and on the label map (in its class)."""

    def __init__(self, height: int, width: int):
        size = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
        self.picture = Image.new("RGB", size)
        self.label_map = Image.new("L", size)
        self._paint = ImageDraw.Draw(self.picture)
        self._mark = ImageDraw.Draw(self.label_map)
        self.label = 0

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        flat = self._flat(points)
        self._paint.polygon(flat, fill=colour)
        self._mark.polygon(flat, fill=self.label)

    def ellipse(self, centre: tuple[float, float], rx: float, ry: float, colour: Colour) -> None:
        x, y = centre
        box = self._flat([x - rx, y - ry, x + rx, y + ry])
        self._paint.ellipse(box, fill=colour)
        self._mark.ellipse(box, fill=self.label)

    def line(self, points: ArrayLike, width: float, colour: Colour) -> None:
        flat, thick = self._flat(points), max(1, round(width * _SUPERSAMPLE))
        self._paint.line(flat, fill=colour, width=thick)
        self._mark.line(flat, fill=self.label, width=thick)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture (H, W, 3) and labels (H, W), both uint8."""
        every = slice(_SUPERSAMPLE // 2, None, _SUPERSAMPLE)
        labels = np.ascontiguousarray(np.asarray(self.label_map)[every, every])
        return np.asarray(self.picture.reduce(_SUPERSAMPLE)), labels

    @staticmethod
    def _flat(points: ArrayLike) -> list[float]:
        return [float(v) * _SUPERSAMPLE for v in np.asarray(points).ravel()]


class Frame:
    """A thing's own frame on a canvas: x to the right, y down, both about -1 to 1.

    Args:
        canvas: what is drawn on.
        x, y: the frame's centre in pixels.
        r: pixels of one unit; radii are in units, widths of lines in pixels.
        mirror: 1, or -1 for a thing that looks the other way.
        tilt: angle in radians.
    """

    def __init__(self, canvas: Canvas, x: float, y: float, r: float, mirror: float, tilt: float):
        self.canvas, self.x, self.y, self.r, self.mirror = canvas, x, y, r, mirror
        self.cos, self.sin = math.cos(tilt), math.sin(tilt)

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        self.canvas.polygon(self._at(points), colour)

    def ellipse(self, centre: tuple[float, float], rx: float, ry: float, colour: Colour) -> None:
        (place,) = self._at([centre])
        self.canvas.ellipse(tuple(place), self.r * rx, self.r * ry, colour)

    def line(self, points: ArrayLike, width: float, colour: Colour) -> None:
        self.canvas.line(self._at(points), width, colour)

    def _at(self, points: ArrayLike) -> np.ndarray:
        x, y = (np.asarray(points, float) * (self.mirror, 1.0)).T
        across, down = self.cos * x - self.sin * y, self.sin * x + self.cos * y
        return np.stack([self.x + self.r * across, self.y + self.r * down], 1)


def _colour(rng: np.random.Generator, choices: str, spread: int = 14) -> Colour:
    """One of the colours, written as in HTML, each channel up to ``spread`` off."""
    colours = [ImageColor.getrgb(f"#{choice}") for choice in choices.split()]
    base = np.array(colours[rng.integers(len(colours))]) + rng.integers(-spread, spread + 1, 3)
    return tuple(int(v) for v in np.clip(base, 0, 255))


def _at_angle(angle: float, reach: float = 1.0) -> tuple[float, float]:
    return reach * math.cos(angle), reach * math.sin(angle)


def _shade(colour: Colour, amount: float) -> Colour:
    """Darker for a negative amount, lighter for a positive one, in [-1, 1]."""
    target = 255 if amount > 0 else 0
    return tuple(round(c + (target - c) * abs(amount)) for c in colour)


def _texture_points(rng: np.random.Generator, region: np.ndarray, spacing: float) -> np.ndarray:
    """Random points (K, 2), x and y, in a region (H, W) bool, one to ``spacing``² pixels."""
    height, width = region.shape
    count = int(height * width / spacing**2)
    points = np.stack([rng.uniform(0, width, count), rng.uniform(0, height, count)], 1)
    return points[region[points[:, 1].astype(int), points[:, 0].astype(int)]]


def draw_sky(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    """Cover the whole canvas; of it ``region`` (H, W) stays visible."""
    height, width = region.shape
    top, bottom = _SKIES[rng.choice(6, p=[0.26, 0.22, 0.2, 0.12, 0.1, 0.1])]
    bands = 24
    rows = np.linspace(0, height, bands + 1)
    for i in range(bands):
        t = i / (bands - 1)
        shade = tuple(int(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
        upper, lower = rows[i], rows[i + 1]
        canvas.polygon([(0, upper), (width, upper), (width, lower), (0, lower)], shade)
    if sum(top) < 200:
        for x, y in _texture_points(rng, region, 26):
            canvas.ellipse((x, y), 0.8, 0.8, (240, 240, 255))
        return
    for _ in range(rng.integers(1, 6)):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height * 0.5), rng.uniform(10, 24)
        for k in range(4):
            centre = (x + (k - 1.5) * r * 0.9, y + rng.uniform(-3, 3))
            canvas.ellipse(centre, r, r * 0.55, _shade(bottom, 0.6))


def _fill(
    canvas: Canvas, rng: np.random.Generator, region: np.ndarray, choices: str, spread: int = 14
) -> Colour:
    """Paint a region (H, W) bool in one of the colours, which is returned."""
    colour = _colour(rng, choices, spread)
    mask = Image.fromarray(region.astype(np.uint8) * 255)
    mask = mask.resize(canvas.picture.size, Image.Resampling.NEAREST)
    canvas.picture.paste(colour, mask=mask)
    canvas.label_map.paste(canvas.label, mask=mask)
    return colour


def _draw_grass(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    base = _fill(canvas, rng, region, "60aa3c 78b946 468c37")
    for x, y in _texture_points(rng, region, 8):
        length, lean = rng.uniform(5, 10), rng.uniform(-3, 3)
        canvas.line([(x, y), (x + lean, y - length)], 1.2, _shade(base, rng.uniform(-0.35, 0.3)))


def _draw_sea(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    base = _fill(canvas, rng, region, "1e5aaa 196ea0 14468c")
    for x, y in _texture_points(rng, region, 15):
        w = rng.uniform(5, 10)
        wave = [(x - w, y), (x - w / 2, y - 3), (x, y), (x + w / 2, y - 3), (x + w, y)]
        canvas.line(wave, 1.4, _shade(base, rng.uniform(0.25, 0.65)))


def _draw_sand(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    base = _fill(canvas, rng, region, "e4c882 d7b46e eed6a0")
    for x, y in _texture_points(rng, region, 8):
        rx, ry = rng.uniform(0.7, 1.6), rng.uniform(0.7, 1.4)
        canvas.ellipse((x, y), rx, ry, _shade(base, rng.uniform(-0.4, 0.2)))


def _draw_road(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    base = _fill(canvas, rng, region, "646469 55555c 787676", 8)
    for x, y in _texture_points(rng, region, 12):
        canvas.ellipse((x, y), 1.0, 1.0, _shade(base, rng.uniform(-0.25, 0.25)))
    for x, y in _texture_points(rng, region, 34):
        canvas.line([(x - 9, y), (x + 9, y)], 3.0, (235, 232, 220))


def _draw_snow(canvas: Canvas, rng: np.random.Generator, region: np.ndarray) -> None:
    _fill(canvas, rng, region, "ecf2fa e1eaf6 f4f6fa", 5)
    for x, y in _texture_points(rng, region, 20):
        w = rng.uniform(5, 12)
        hollow = [(x - w, y), (x, y + w * 0.35), (x + w, y)]
        canvas.line(hollow, 1.6, _shade((150, 175, 215), rng.uniform(-0.1, 0.3)))


def _draw_house(pen: Frame, rng: np.random.Generator) -> None:
    wall = _colour(rng, "f0dcb4 e1a08c c8785a becde1 ebebd7")
    roof = _colour(rng, "aa3228 78462d 46466e 3c645a")
    pen.polygon([(0.4, -0.95), (0.6, -0.95), (0.6, -0.2), (0.4, -0.2)], _shade(roof, -0.3))
    pen.polygon([(-0.8, -0.15), (0.8, -0.15), (0.8, 1), (-0.8, 1)], wall)
    for row in np.arange(-0.05, 1, 0.15):
        pen.line([(-0.8, row), (0.8, row)], 1, _shade(wall, -0.22))
        for col in np.arange(-0.7 + 0.1 * (round(row / 0.15) % 2), 0.8, 0.25):
            pen.line([(col, row), (col, min(row + 0.15, 1))], 1, _shade(wall, -0.22))
    pen.polygon([(-1, -0.1), (0, -1), (1, -0.1)], roof)
    for k in range(1, 5):
        y = -1 + 0.2 * k
        pen.line([(-(y + 1) / 0.9, y), ((y + 1) / 0.9, y)], 1, _shade(roof, -0.3))
    pen.polygon([(-0.18, 0.4), (0.18, 0.4), (0.18, 1), (-0.18, 1)], _shade(roof, -0.25))
    for x in (-0.52, 0.52):
        window = [(x - 0.18, 0.1), (x + 0.18, 0.1), (x + 0.18, 0.45), (x - 0.18, 0.45)]
        pen.polygon(window, (150, 205, 235))
        pen.line([(x, 0.1), (x, 0.45)], pen.r * 0.04, (255, 255, 255))
        pen.line([(x - 0.18, 0.27), (x + 0.18, 0.27)], pen.r * 0.04, (255, 255, 255))


def _draw_tree(pen: Frame, rng: np.random.Generator) -> None:
    bark = _colour(rng, "6e4b2d 5a4132")
    leaf = _colour(rng, "2d7332 1e5f3c 467d2d be6e28")
    pen.polygon([(-0.14, 0.1), (0.14, 0.1), (0.2, 1), (-0.2, 1)], bark)
    if rng.random() < 0.35:
        for k in range(3):
            y = -1 + 0.45 * k
            pen.polygon(
                [(0, y), (0.45 + 0.15 * k, y + 0.7), (-0.45 - 0.15 * k, y + 0.7)],
                _shade(leaf, -0.12 * k),
            )
        centres = [(0, -0.5), (0, 0), (-0.25, 0.2), (0.25, 0.2)]
        reach = 0.25
    else:
        centres = [(0, -0.5), (-0.45, -0.2), (0.45, -0.2), (0, 0.0), (-0.25, -0.6), (0.25, -0.6)]
        reach = 0.38
        for x, y in centres:
            pen.ellipse((x, y), 0.42, 0.42, _shade(leaf, rng.uniform(-0.12, 0.12)))
    for x, y in centres:
        for dx, dy in rng.uniform(-reach, reach, (9, 2)) * 0.7:
            pen.ellipse((x + dx, y + dy), 0.05, 0.05, _shade(leaf, rng.uniform(-0.3, 0.35)))


def _draw_car(pen: Frame, rng: np.random.Generator) -> None:
    paint = _colour(rng, "c8282d 285abe f0be28 32965a e67828 ebebeb")
    pen.polygon([(-0.55, -0.1), (-0.35, -0.6), (0.3, -0.6), (0.6, -0.1)], _shade(paint, -0.15))
    pen.polygon([(-0.42, -0.1), (-0.28, -0.48), (-0.03, -0.48), (-0.03, -0.1)], (185, 225, 240))
    pen.polygon([(0.05, -0.1), (0.05, -0.48), (0.25, -0.48), (0.45, -0.1)], (185, 225, 240))
    pen.polygon([(-1, -0.05), (-0.9, -0.14), (0.85, -0.14), (1, 0.05), (1, 0.4), (-1, 0.4)], paint)
    pen.line([(-1, 0.15), (1, 0.15)], pen.r * 0.05, _shade(paint, -0.3))
    pen.ellipse((0.9, 0.08), 0.09, 0.09, (255, 245, 170))
    for x in (-0.55, 0.55):
        pen.ellipse((x, 0.4), 0.27, 0.27, (30, 30, 34))
        pen.ellipse((x, 0.4), 0.13, 0.13, (190, 190, 195))


def _draw_boat(pen: Frame, rng: np.random.Generator) -> None:
    hull = _colour(rng, "8c502d aa2d2d 323c78 ebebe6")
    sail = _colour(rng, "faf5e6 f5d782 f0968c")
    pen.line([(0, -1), (0, 0.4)], pen.r * 0.07, (95, 65, 40))
    pen.polygon([(0.08, -0.95), (0.75, 0.25), (0.08, 0.25)], sail)
    pen.polygon([(-0.08, -0.8), (-0.6, 0.25), (-0.08, 0.25)], _shade(sail, -0.1))
    for y in (-0.45, -0.1):
        pen.line([(0.08, y), (0.08 + 0.56 * (y + 0.95), y)], pen.r * 0.05, _shade(hull, 0.1))
    pen.polygon([(-1, 0.38), (1, 0.38), (0.7, 0.95), (-0.7, 0.95)], hull)
    pen.line([(-0.93, 0.52), (0.93, 0.52)], pen.r * 0.07, _shade(hull, 0.5))
    for x in (-0.4, 0, 0.4):
        pen.ellipse((x, 0.72), 0.08, 0.08, _shade(hull, -0.5))


def _draw_sun(pen: Frame, rng: np.random.Generator) -> None:
    glow = _colour(rng, "ffcd28 ffb428 ffdc50")
    turn = rng.uniform(0, math.pi)
    for k in range(12):
        a = turn + 2 * math.pi * k / 12
        ray = [_at_angle(a), _at_angle(a - 0.16, 0.6), _at_angle(a + 0.16, 0.6)]
        pen.polygon(ray, _shade(glow, -0.12))
    pen.ellipse((0, 0), 0.62, 0.62, glow)
    pen.ellipse((0, 0), 0.5, 0.5, _shade(glow, 0.25))
    for x in (-0.2, 0.2):
        pen.ellipse((x, -0.1), 0.06, 0.09, (90, 60, 20))
    pen.line([(-0.24, 0.15), (-0.1, 0.25), (0.1, 0.25), (0.24, 0.15)], pen.r * 0.06, (90, 60, 20))


def _draw_star(pen: Frame, rng: np.random.Generator) -> None:
    shine = _colour(rng, "fafac8 b4e6ff ffb4dc c8a0fa")
    turn = rng.uniform(-0.4, 0.4) - math.pi / 2
    for scale, colour in ((1.0, _shade(shine, -0.35)), (0.8, shine), (0.4, _shade(shine, 0.5))):
        reaches = (scale * (1.0 if k % 2 == 0 else 0.45) for k in range(10))
        spikes = [_at_angle(turn + math.pi * k / 5, reach) for k, reach in enumerate(reaches)]
        pen.polygon(spikes, colour)


def _draw_fish(pen: Frame, rng: np.random.Generator) -> None:
    skin = _colour(rng, "f58232 9650b4 28aaa0 e6506e f0c83c")
    pen.polygon([(0.45, 0), (1, -0.5), (0.85, 0), (1, 0.5)], _shade(skin, -0.25))
    pen.polygon([(-0.25, -0.35), (0.15, -0.75), (0.35, -0.25)], _shade(skin, -0.2))
    pen.ellipse((-0.15, 0), 0.78, 0.48, skin)
    for i in range(5):
        for j in range(-2, 3):
            x, y = -0.25 + 0.17 * i + (0.08 if j % 2 else 0), 0.15 * j
            if ((x + 0.15) / 0.7) ** 2 + (y / 0.4) ** 2 < 0.8:
                scale = [(x, y - 0.07), (x + 0.08, y), (x, y + 0.07)]
                pen.line(scale, pen.r * 0.035, _shade(skin, -0.4))
    pen.line([(-0.45, -0.3), (-0.38, 0), (-0.45, 0.3)], pen.r * 0.06, _shade(skin, 0.6))
    pen.ellipse((-0.65, -0.1), 0.11, 0.11, (255, 255, 255))
    pen.ellipse((-0.67, -0.1), 0.055, 0.055, (10, 10, 20))


def _draw_flower(pen: Frame, rng: np.random.Generator) -> None:
    petal = _colour(rng, "f06eaa b45ad2 e6323c fafafa 6e78e6")
    pen.line([(0, -0.3), (0.05, 1)], pen.r * 0.12, (60, 130, 50))
    pen.polygon([(0.03, 0.75), (0.5, 0.35), (0.35, 0.75)], (75, 150, 60))
    pen.polygon([(0.03, 0.9), (-0.45, 0.5), (-0.3, 0.9)], (75, 150, 60))
    for k in range(7):
        x, y = _at_angle(2 * math.pi * k / 7, 0.38)
        pen.ellipse((x, -0.4 + y), 0.26, 0.26, _shade(petal, -0.12 * (k % 2)))
    pen.ellipse((0, -0.4), 0.22, 0.22, (250, 205, 50))
    for k in range(6):
        x, y = _at_angle(2 * math.pi * k / 6, 0.12)
        pen.ellipse((x, -0.4 + y), 0.04, 0.04, (190, 120, 30))


def _draw_balloon(pen: Frame, rng: np.random.Generator) -> None:
    skin = _colour(rng, "e1233c 14a0dc 3cbe50 fa961e aa3cc8")
    string = [(0, 0.45), (0.08, 0.62), (-0.06, 0.8), (0.02, 1)]
    pen.line(string, max(1.2, pen.r * 0.04), (90, 90, 90))
    pen.ellipse((0, -0.3), 0.6, 0.7, skin)
    pen.ellipse((0, -0.3), 0.36, 0.7, _shade(skin, 0.25))
    pen.ellipse((0, -0.3), 0.14, 0.7, skin)
    pen.polygon([(0, 0.36), (0.12, 0.52), (-0.12, 0.52)], _shade(skin, -0.3))
    pen.ellipse((-0.26, -0.62), 0.1, 0.16, (255, 255, 255))


def _draw_mushroom(pen: Frame, rng: np.random.Generator) -> None:
    cap = _colour(rng, "c82828 a05f37 d27828 783c6e")
    pen.polygon([(-0.2, 0), (0.2, 0), (0.32, 0.95), (-0.32, 0.95)], (245, 235, 210))
    for x in (-0.1, 0.08):
        pen.line([(x, 0.2), (x * 1.6, 0.9)], 1, (205, 190, 160))
    dome = [(math.cos(a), 0.15 - 1.05 * math.sin(a)) for a in np.linspace(0, math.pi, 24)]
    pen.polygon(dome, cap)
    pen.line([(-0.95, 0.12), (0.95, 0.12)], pen.r * 0.1, _shade(cap, -0.35))
    spots = ((-0.55, -0.2, 0.13), (0, -0.6, 0.16), (0.5, -0.25, 0.14), (0.05, -0.15, 0.11))
    for x, y, s in (*spots, (-0.3, -0.6, 0.08)):
        pen.ellipse((x, y), s, s * 0.9, (250, 248, 240))


GROUND_PAINTERS = {
    "grass": _draw_grass, "sea": _draw_sea, "sand": _draw_sand, "road": _draw_road,
    "snow": _draw_snow,
}  # fmt: skip
THING_PAINTERS = {
    "house": _draw_house, "tree": _draw_tree, "car": _draw_car, "boat": _draw_boat,
    "sun": _draw_sun, "star": _draw_star, "fish": _draw_fish, "flower": _draw_flower,
    "balloon": _draw_balloon, "mushroom": _draw_mushroom,
}  # fmt: skip
