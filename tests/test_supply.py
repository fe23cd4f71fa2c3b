"""What the package is made of: declared, bounded and told; no network unless asked; downloads are the published ones."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_packaging import PINS, setup_requirements

from sfp import SFPError
from sfp.datasets.preparation import download
from sfp.network import published_sha256, require_published

TABLE = (ROOT / "docs/supply.md").read_text(encoding="utf-8")
IMPORTED_AS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open-clip-torch", "cv2": "opencv-python", "mmcv": "mmcv-lite",
    "mmseg": "onedl-mmsegmentation", "yaml": "pyyaml",
}  # fmt: skip
CALENDAR = {"regex", "packaging"}  # versions by date: the next major one says nothing


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("requirement", setup_requirements(), ids=str)
def test_each_requirement_is_bounded_pinned_and_told(requirement):
    operators = {bound.operator for bound in requirement.specifier}
    name = plain(requirement.name)
    assert "<" in operators or name in CALENDAR
    assert ">=" in operators or name == "setuptools"
    assert name in PINS
    (row,) = re.findall(rf"^\| {re.escape(requirement.name)} \|(.*)\|$", TABLE, re.M)
    cells = [cell.strip() for cell in row.split("|")]
    bounds = ",".join(sorted(str(requirement.specifier).split(","), reverse=True))
    assert cells[0] == f"`{bounds}`" and len(cells) == 5 and all(cells)


def test_what_is_imported_is_declared():
    declared = {plain(requirement.name) for requirement in setup_requirements()}
    beside = {
        file.stem for file in (ROOT / "tools").rglob("*.py")
    }  # programs that import each other
    for file in [*(ROOT / "sfp").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in (
                {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"sfp"} - beside
            ):
                assert IMPORTED_AS.get(top, plain(top)) in declared, f"{file} imports {top}"


WITHOUT_NETWORK = """
import importlib, pkgutil, socket, sys
asked = []
def refuse(*args, **more):
    asked.append(args)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import sfp
for module in pkgutil.walk_packages(sfp.__path__, "sfp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from sfp.datasets import toyland
segmenter = sfp.Segmenter("SFP-release", model="Toyland", device="cpu", text_cache=False)
result = segmenter(toyland.make_scene("val", 0).image, toyland.CLASSES)
assert len(result.areas) > 1 and not asked, asked
print(len([name for name in sys.modules if name.startswith("sfp")]))
"""


def test_no_module_asks_the_network(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 60


def hub_cache(folder: Path, content: bytes, name: str) -> Path:
    """A file as Hugging Face's cache keeps it: a link to a blob that is named by its SHA-256."""
    blob = folder / "blobs" / name
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link = folder / "snapshots/0/model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    return link


def test_downloads_are_the_published_ones(tmp_path):
    content = b"weights"
    published = hashlib.sha256(content).hexdigest()
    require_published(hub_cache(tmp_path / "sound", content, published))
    with pytest.raises(SFPError, match="not the published"):
        require_published(hub_cache(tmp_path / "damaged", b"wreights", published))
    release = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_b_16-laion400m_e32-{}.pt"
    for address, digits in (
        ("https://openaipublic.azureedge.net/clip/models/{}/ViT-B-16.pt", published),
        (release, published[:8]),
    ):
        for url in (address.format(digits), address.format("0" * len(digits))):
            file = tmp_path / url.rsplit("/", 1)[1]
            file.write_bytes(content)
            if digits in url:
                require_published(file, url)
            else:
                with pytest.raises(SFPError, match="delete it"):
                    require_published(file, url)
    assert (
        published_sha256(
            tmp_path / "b16_400m.pt", "https://dl.fbaipublicfiles.com/MMPT/metaclip/b16_400m.pt"
        )
        == ""
    )


def test_every_openai_weight_has_a_published_sha256():
    import open_clip

    urls = [
        open_clip.get_pretrained_cfg(name, "openai")["url"]
        for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
    ]
    assert all(
        re.fullmatch("[0-9a-f]{64}", published_sha256(Path(url.rsplit("/", 1)[1]), url))
        for url in urls
    )


def test_the_table_tells_which_archives_are_verified():
    for archive in (
        download.VOC2012,
        download.ADE20K,
        download.COCO_VAL2017,
        download.COCO_STUFF_MAPS,
    ):
        (row,) = re.findall(rf"^\| `{re.escape(archive.name)}` \|(.*)\|$", TABLE, re.M)
        assert row.strip() == (
            f"`{archive.checksum}`"
            if archive.checksum
            else "its length only: no checksum is published"
        )
