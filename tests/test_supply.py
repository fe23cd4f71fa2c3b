"""Dependencies are declared, bounded, listed; no network unless asked; downloads are verified."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from conftest import ROOT
from test_packaging import PINS, setup_requirements

from sfp import SFPError
from sfp.datasets.preparation import download
from sfp.network import published_sha256, require_published, url_sha256

TABLE = (ROOT / "docs/supply.md").read_text(encoding="utf-8")
IMPORTED_AS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "mmcv": "mmcv-lite",
    "mmseg": "onedl-mmsegmentation",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
CALENDAR = {"regex", "packaging"}  # versions by date: the next major one says nothing


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("requirement", setup_requirements(), ids=str)
def test_each_requirement_is_bounded_pinned_and_listed(requirement):
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
    ours = {file.stem for file in (ROOT / "tools").rglob("*.py")} | {"sfp"}
    ours |= {file.stem for file in (ROOT / "tests").glob("*.py")}  # read by tools/dev alone
    for file in [*(ROOT / "sfp").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            tops = {name.split(".")[0] for name in names}
            for top in tops - sys.stdlib_module_names - ours:
                assert IMPORTED_AS.get(top, plain(top)) in declared, f"{file} imports {top}"


WITHOUT_NETWORK = """
import importlib, pkgutil, socket, sys
asked = []
def refuse(*args, **more):
    asked.append(args)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
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


# over 5 s: a fresh interpreter imports every module
def test_no_module_asks_the_network(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    command = [sys.executable, "-c", WITHOUT_NETWORK]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
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
    for address, digits in (
        ("https://openaipublic.example/clip/models/{}/ViT-B-16.pt", published),
        ("https://example/mlfoundations/open_clip/vit_b_16-laion400m_e32-{}.pt", published[:8]),
    ):
        for url in (address.format(digits), address.format("0" * len(digits))):
            file = tmp_path / url.rsplit("/", 1)[1]
            file.write_bytes(content)
            if digits in url:
                require_published(file, url)
            else:
                with pytest.raises(SFPError, match="delete it"):
                    require_published(file, url)
    meta = open_clip.get_pretrained_cfg("ViT-B-16", "metaclip_400m")["url"]
    assert published_sha256(tmp_path / "b16_400m.pt", meta) == ""


def test_every_openai_weight_has_a_published_sha256():
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        url = open_clip.get_pretrained_cfg(name, "openai")["url"]
        assert re.fullmatch("[0-9a-f]{64}", url_sha256(url))


def test_the_table_lists_how_archives_are_verified():
    names = ("VOC2012", "ADE20K", "COCO_VAL2017", "COCO_STUFF_MAPS")
    for archive in (getattr(download, name) for name in names):
        (row,) = re.findall(rf"^\| `{re.escape(archive.name)}` \|(.*)\|$", TABLE, re.M)
        length = "its length only: no checksum is published"
        assert row.strip() == (f"`{archive.checksum}`" if archive.checksum else length)
