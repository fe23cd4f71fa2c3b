"""What the command line of ``sfp verify`` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfp.errors import SFPError
from sfp.verification.given import read_images, read_roots


def test_photographs_by_word_and_by_list(tmp_path):
    for name in ("cat.jpg", "a=b.jpg"):
        (tmp_path / name).touch()
    cat, odd = tmp_path / "cat.jpg", tmp_path / "a=b.jpg"
    assert read_images([f"{cat}=tabby cat", f"{odd}=sign"]) == ((cat, "tabby cat"), (odd, "sign"))
    (tmp_path / "list.csv").write_text("file,word\ncat.jpg,cat\na=b.jpg, sign\n")
    (tmp_path / "list.json").write_text(json.dumps({"cat.jpg": "cat", "a=b.jpg": "sign"}))
    for name in ("list.csv", "list.json"):
        assert read_images([str(tmp_path / name)]) == ((cat, "cat"), (odd, "sign"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("cat.jpg", "write FILE=word"),
        ("cat.jpg=", "write FILE=word"),
        ("absent.jpg=cat", "There is no image file absent.jpg"),
        ("absent.csv", "The list absent.csv (--images) can't be read"),
    ],
)
def test_wrong_photographs(given, words):
    with pytest.raises(SFPError, match=words.replace("(", r"\(").replace(")", r"\)")):
        read_images([given])


def test_roots():
    assert read_roots(["voc21=/data/VOC2012"]) == {"voc21": "/data/VOC2012"}
    with pytest.raises(SFPError, match="did you mean 'voc21'"):
        read_roots([f"voc22={Path.home()}"])
    with pytest.raises(SFPError, match="write NAME=FOLDER"):
        read_roots(["voc21"])
