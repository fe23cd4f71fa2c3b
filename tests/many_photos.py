"""Small photographs of Toyland, and what is asked of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sfp.datasets import toyland
from sfp.many.recipe import Recipe

NAMES = ["sky", "sea", "house"]
COUNT = 34


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """34 pictures in a folder and two subfolders."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = [Image.fromarray(toyland.make_scene("val", number).image) for number in range(5)]
    for number in range(COUNT):
        inside = folder / ("", "b", "b/c")[number % 3]
        inside.mkdir(exist_ok=True)
        own = scenes[number % 5].resize((80 + number, 64))
        own.save(inside / f"{number:02d}.jpg")
    return folder


@pytest.fixture(scope="session")
def recipe():
    options = dict(short_side=112, window=112, stride=112)
    asked = {"names": NAMES, **options}
    return Recipe(["CLIP"], NAMES, None, "Toyland", device="cpu", options=options, asked=asked)


def jpeg(number: int = 0, size: tuple[int, int] = (48, 32)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(data, "jpeg")
    return data.getvalue()


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file


def web_dataset(count: int = 4) -> dict[str, bytes]:
    """key.jpg and key.json, as webdataset writes them."""
    members = {}
    for number in range(count):
        members[f"{number:04d}.jpg"] = jpeg(number)
        members[f"{number:04d}.json"] = json.dumps({"n": number}).encode()
    return members
