"""Every program that takes a file of weights takes what the file doesn't show."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file

TOYLAND = ROOT / "configs/cfg_toyland.py"
FEW = ("model.clip=ViT-B/16", "model.prompts=photo", "test_dataloader.dataset.scenes=2")


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Toyland's weights in a file that says nothing of their activation."""
    file = tmp_path_factory.mktemp("weights") / "silent.safetensors"
    save_file(load_file(ROOT / "sfp/clip/toyland.safetensors"), file)
    return file


def segment(file, out):
    scene = ROOT / "docs/pictures/scene.jpg"
    given = ["--names", "sky,sea", "--out", out, "--device", "cpu", "--pretrained", file]
    return ["segment", scene, *given], ["--quick-gelu", "--head-width", 64]


def measure_speed(file, out):
    given = ["--methods", "CLIP", "--rounds", 1, "--batch", 1, "--pretrained", file]
    return ["measure_speed", *given, "--device", "cpu"], ["--quick-gelu", "--head-width", 64]


def probe_layers(file, out):
    given = ["probe_layers", TOYLAND, "--images", 1, "--cfg-options", *FEW]
    return [*given, f"model.weights={file}"], ["model.quick_gelu=True", "model.head_width=64"]


def evaluation(file, out):
    given = ["test", TOYLAND, "--work-dir", out, "--cfg-options", *FEW]
    return [*given, f"model.pretrained={file}"], ["model.quick_gelu=True", "model.head_width=64"]


@pytest.mark.parametrize("program", [segment, measure_speed, probe_layers, evaluation])
def test_the_users_word(program, silent, tmp_path, tool):
    given, word = program(silent, tmp_path / "out")
    code, _, error = tool(*given, *word[1:])
    assert code == 2 and "quick_gelu=True or quick_gelu=False" in error
    code, _, error = tool(*given, *word)
    assert (code, error) == (0, "")


def test_the_page_takes_it(monkeypatch, capsys):
    from sfp.commands.page import main

    monkeypatch.setattr(sys, "argv", ["page", "--help"])
    with pytest.raises(SystemExit):
        main()
    help_text = capsys.readouterr().out
    for option in ("--no-quick-gelu", "--head-width", "--pixel-mean", "--pixel-std"):
        assert option in help_text
