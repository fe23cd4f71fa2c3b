"""The program that shows and clears caches: its own files go, foreign ones stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

OWN = {
    "text": [f"sfp/text/{'0' * 64}.safetensors"],
    "masks": [f"sfp/masks/{'0' * 16}/{'0' * 64}.npz"],
    "downloads": [
        "home/.cache/clip/ViT-B-16.pt",
        "hub/models--laion--CLIP-ViT-B-16-laion2B-s34B-b88K/blobs/0",
        "hub/models--timm--vit_base_patch8_224.dino/blobs/0",
        "data/downloads/val2017.zip",
        "data/downloads/ADEChallengeData2016.zip.partial",
    ],
    "compiled": ["inductor/ab/code.py"],
}
FOREIGN = [
    "sfp/text/mine.safetensors", "sfp/masks/mine/a.npz", "sfp/notes.txt",
    "home/.cache/clip/mine.pt",
    "hub/models--me--my-model/blobs/0", "hub/version.txt",
    "data/downloads/mine.zip", "data/VOCdevkit/VOC2012/JPEGImages/a.jpg",
]  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch):
    for name in (*(name for names in OWN.values() for name in names), *FOREIGN):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1 << 20))
    for key, value in dict(
        SFP_CACHE="sfp", HOME="home", SFP_DATA="data", TORCHINDUCTOR_CACHE_DIR="inductor"
    ).items():
        monkeypatch.setenv(key, str(tmp_path / value))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        ([], []),
        (["--clear", "text"], ["text"]),
        (["--clear", "masks"], ["masks"]),
        (["--clear", "downloads"], ["downloads"]),
        (["--clear", "compiled"], ["compiled"]),
        (["--clear", "all"], ["text", "masks", "downloads"]),
        (["--clear", "all", "compiled"], ["text", "masks", "downloads", "compiled"]),
    ],
)
def test_what_is_listed_and_cleared(arguments, gone, world, tool):
    code, out, _ = tool("cache", *arguments)
    assert code == 0 and out.count("cleared") == sum(
        {"text": 1, "masks": 1, "downloads": 3, "compiled": 1}[name] for name in gone
    )
    for line, words in zip(
        (line for line in out.splitlines() if " files " in line),
        ("1 files", "1 files", "1 files", "2 files", "2 files", "1 files"),
        strict=True,
    ):
        assert words in line and f"{words[0]}.0 MiB" in line and str(world) in line
    for name, names in OWN.items():
        assert all((world / file).exists() != (name in gone) for file in names), name
    assert all((world / file).exists() for file in FOREIGN)


def test_empty(tmp_path, tool, monkeypatch):
    monkeypatch.setenv("SFP_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = tool("cache", "--data", tmp_path)
    assert (
        code == 0
        and Path(ROOT).exists()
        and "text            0 files       0.0 MiB" in out
        and not list(tmp_path.iterdir())
    )
