"""What is answered at once: help, mistakes and what is done, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from conftest import ROOT
from PIL import Image

import sfp
from sfp.__main__ import main
from sfp.commands import COMMANDS
from sfp.datasets import toyland
from sfp.names import shipped_lists
from sfp.registry import registered_names

RUN = """
import contextlib, io, json, sys
from sfp.__main__ import main
answers = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code
    slow = sorted({"torch", "open_clip", "mmseg.models", "gradio", "matplotlib"} & set(sys.modules))
    answers.append([code, out.getvalue(), err.getvalue(), slow])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    """What a command said, and which slow packages had been imported by then."""

    code: int
    out: str
    err: str
    slow: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    picture = Image.fromarray(toyland.make_scene("val", 0).image).resize((96, 64))
    picture.save(folder / "photo.jpg")
    (folder / "empty").mkdir()
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    return folder


def run(folder, *commands: list[str]) -> list[Answer]:
    """The answers of one fresh process to several commands."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [Answer(*each) for each in json.loads(done.stdout)]


SEGMENT = "segment photo.jpg --names cat --model Toyland --options prompts=photo"
MISTAKES = [
    ("sgment photo.jpg", "Unknown command 'sgment'; did you mean 'segment'"),
    ("segment", "the following arguments are required: images, --names"),
    ("segment absent.jpg --names cat", "There is no image file or folder absent.jpg"),
    ("segment empty --names cat", "The folder empty has no pictures"),
    ("segment photo.jpg --names photo.jpg", "The names file photo.jpg can't be read"),
    ("segment photo.jpg --names binary.txt", "The names file binary.txt can't be read"),
    ("segment photo.jpg --names absent.txt", "There is no names file absent.txt"),
    ("segment photo.jpg --names cat,,dog", "an empty name at place 2"),
    ("segment photo.jpg --names cat,Cat", "duplicate name 'cat'"),
    (f"{SEGMENT} --method SPF", "Unknown method 'SPF'; did you mean 'SFP'"),
    (f"{SEGMENT} --methods SFP,CLP", "Unknown method 'CLP'; did you mean 'CLIP'"),
    (f"{SEGMENT} --format png,gif", "Unknown format 'gif'"),
    (f"{SEGMENT} --methods SFP,CLIP --format coco", "leave --format and --parts out"),
    (f"{SEGMENT} --background a --no-background", "not allowed with argument"),
    (f"{SEGMENT} --options sigma", "write KEY=VALUE"),
    ("inspect photo.jpg --patch 3", "--patch is '3'; give ROW,COLUMN"),
    ("inspect photo.jpg --layers a", "--layers is 'a'; give numbers"),
    ("inspect photo.jpg --figures x", "Unknown figure 'x'"),
    ("inspect photo.jpg --figures patch", "add --patch ROW,COLUMN"),
    ("inspect photo.jpg --detectors SON", "Unknown detector 'SON'; did you mean 'SOM'"),
    ("inspect photo.jpg --method SPF", "did you mean 'SFP'"),
    ("evaluate toylnd", "Unknown config file or dataset 'toylnd'; did you mean 'toyland'"),
    ("evaluate absent.py", "Unknown config file 'absent.py'"),
    ("evaluate toyland --cfg-options model.pm", "write KEY=VALUE"),
    ("methods SPF", "Unknown method 'SPF'; did you mean 'SFP'"),
    ("prepare voc22", "'voc22'; did you mean"),
    ("verify --steps z", "Unknown step 'z'"),
    ("verify --methods SPF", "Unknown method 'SPF'; did you mean 'SFP'"),
    ("verify --images photo.jpg", "--images got 'photo.jpg'; write FILE=word"),
    ("verify --data-root voc22=.", "Unknown config file or dataset 'voc22'"),
    ("verify --minutes 0", "--minutes is 0.0; give a number above 0"),
    ("check voc21 --workers 0", "--workers is 0"),
    ("page --pretrained x", "Weights are named without a model"),
    ("cache --clear x", "invalid choice: 'x'"),
]


def test_mistakes(folder):
    for (given, words), answer in zip(
        MISTAKES, run(folder, *(given.split() for given, _ in MISTAKES)), strict=True
    ):
        (line,) = [line for line in answer.err.splitlines() if "error: " in line]
        assert answer.code == 2 and words in line, given
        assert not answer.slow, given


def test_help(folder):
    nothing, whole, *each = run(
        folder, [], ["--help"], *([command, "--help"] for command in COMMANDS)
    )
    assert (nothing.code, whole.code) == (2, 0) and nothing.out == whole.out
    for command, answer in zip(COMMANDS, each, strict=True):
        assert f"  {command} " in whole.out
        assert answer.code == 0 and answer.out.startswith(f"usage: sfp {command}")
        assert not answer.slow


def test_what_is_done(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(SEGMENT.split()) == 0
    again = SEGMENT.split()
    done, refused = run(folder, again, [*again, "--out", "photo.jpg/x"])
    assert "1 of 1 are done with these settings" in done.out and done.code == 0
    assert "photo.jpg/x can't be written" in refused.err and not refused.slow
    capsys.readouterr()


def test_lists_of_methods(folder):
    (answer,) = run(folder, ["methods"])
    listed = [line.split()[0] for line in answer.out.splitlines() if line.startswith("  ")]
    assert listed == [*sfp.list_methods(), *sfp.list_detectors(), *sfp.list_refiners()]
    assert not answer.slow


def test_names_read_from_files_are_the_registered_ones():
    for package, names in (("methods", sfp.list_methods()), ("outliers", sfp.list_detectors())):
        found = registered_names(f"sfp.{package}")
        listed = {name: words for name, words in found.items() if words}
        assert list(listed) == names
        said = [words.partition(": ")[2] or words for words in listed.values()]
        assert len(set(said)) == len(names)  # no two have one description
    assert registered_names("sfp.methods")["SC-CLIP-ablation"] == ""


def test_one_method_and_the_models(capsys):
    assert main(["methods", "SC-CLIP"]) == 0
    said = capsys.readouterr().out
    own, every = said.split("options of every method")
    assert "beta: similarities below it are cut" in own and "beta=0.4" in own and "pm=" not in own
    assert "pm=None" in every
    assert main(["models", "b-16"]) == 0
    said = capsys.readouterr().out
    assert "ViT-B-16 " in said and "laion400m_e32" in said and "Toyland" not in said
    assert main(["models", "siglip2"]) == 0 and "webli" in capsys.readouterr().out
    assert main(["models", "*b-16-siglip2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "ViT-B-16-SigLIP2"
    ]
    assert main(["models", "resnet"]) == 2
    assert "No model has 'resnet' in its name" in capsys.readouterr().err


def test_every_shipped_list_is_there():
    lists = shipped_lists()
    assert {"ade20k", "toyland", "voc21"} <= lists.keys()
    assert all(file.is_file() for file in lists.values())
