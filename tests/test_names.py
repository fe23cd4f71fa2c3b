"""Names that are one: what CLIP reads alike, and what differs in its Unicode form alone; names as a
command line gives them; the usual background.
"""

from __future__ import annotations

import unicodedata

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from sfp.errors import SFPError
from sfp.names import check_names, read_names, reading, shipped_lists, usual_background
from sfp.pipeline import Vocabulary

ONE = {
    "composed and not (NFC)": ("café", "cafe\u0301"),
    "a kana (NFC)": ("が", "か\u3099"),
    "Angstrom (NFC)": ("\u00c5", "\u212b"),
    "wide letters (NFKC)": ("ｃａｔ", "cat"),
    "a ligature (NFKC)": ("ﬁsh", "fish"),
    "a square (NFKC)": ("m²", "m2"),
    "Roman four (NFKC)": ("Ⅳ", "IV"),
    "dots (NFKC)": ("a…", "a..."),
    "hard space": ("ice\u00a0cream", "ice cream"),
    "two spaces": ("ice  cream", "ice cream"),
    "HTML": ("cats &amp; dogs", "cats & dogs"),
    "quotes": ("boy’s", "boy's"),
    "wrong encoding": ("cafÃ©", "café"),
    "capitals": ("CAT", "cat"),
    "sharp s": ("straße", "STRASSE"),
    "final sigma": ("ς", "σ"),
    "soft hyphen": ("cat\u00ad", "cat"),
    "word joiner": ("cat\u2060", "cat"),
    "variation selector": ("cat\ufe0f", "cat"),
}
TWO = [("cat", "cats"), ("cafe", "café"), ("a", "\u0430"), ("m2", "m3"), ("½", "12")]


@pytest.mark.parametrize(("one", "other"), ONE.values(), ids=ONE)
def test_one_name(one, other, tmp_path):
    with pytest.raises(SFPError, match=r"duplicate name .* at places 1, 3"):
        Vocabulary.from_names([one, "sea", other])
    with pytest.raises(SFPError, match="twice at place 2"):
        Vocabulary.from_names(["sea", [one, other]])
    with pytest.raises(SFPError, match="duplicate name"):
        Vocabulary.from_names([one, "sea"]).with_background(other)
    (tmp_path / "names.txt").write_text(f"{one}\n{other}\n", encoding="utf-8")
    with pytest.raises(SFPError, match=r"names\.txt has the duplicate name"):
        Vocabulary.from_file(tmp_path / "names.txt")


@pytest.mark.parametrize(("one", "other"), TWO)
def test_two_names(one, other):
    """Letters that merely look alike are others, as CLIP reads them; names are kept as given."""
    assert Vocabulary.from_names([one, other]).names == (one, other)


def test_what_is_one_without_nfkc_has_one_vector(toyland_clip):
    """The reason for the tokenizer's own cleaning: such words could not be told apart."""
    for one, other in (pair for name, pair in ONE.items() if "NFC)" in name):
        assert toyland_clip.tokenizer.encode(one) == toyland_clip.tokenizer.encode(other)


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_plain_words_are_read_as_the_tokenizer_cleans_them(word):
    text = unicodedata.normalize("NFKC", get_clean_fn("lower")(word)).casefold()
    assert reading(word) == " ".join(text.split()) or not word.isprintable()


class TestReadNames:
    def test_typed(self):
        assert read_names("cat, sofa") == ([["cat"], ["sofa"]], "")
        assert read_names(" sea , ocean; boat") == ([["sea", "ocean"], ["boat"]], "")
        assert read_names("cats/dogs, v1.5") == ([["cats/dogs"], ["v1.5"]], "")

    def test_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("list", "my list.names", "ade20k"):
            (tmp_path / name).write_text("\ufeffsky\nsea,ocean\n", encoding="utf-8")
        expected = [["sky"], ["sea", "ocean"]]
        for path in ("./list", "my list.names", str(tmp_path / "list"), "./ade20k"):
            assert read_names(path) == (expected, path.removeprefix("./"))
        assert read_names("list") == ([["list"]], "")

    @pytest.mark.parametrize("name", shipped_lists())
    def test_shipped_lists(self, name):
        names, file = read_names(name.upper())
        assert file == str(ROOT / f"configs/cls_{name}.txt") and len(names) > 15
        if len(names[0]) > 10:  # a background is called so, and its words are still asked for
            assert names[0][0] == "background"
            words = (ROOT / file).read_text().split("\n")[0].split(", ")
            assert [word for word in words if word != "background"] == names[0][1:]
        lines = (ROOT / file).read_text().splitlines()
        separator = "; " if name == "ade847" else ", "
        assert names[1:] == [line.split(separator) for line in lines][1:]

    def test_what_is_no_list(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
        (tmp_path / "zeros.txt").write_bytes(bytes(9))
        (tmp_path / "empty.txt").write_text("\n")
        (tmp_path / "large.txt").write_text("cat\n" * 300_000)
        (tmp_path / "folder.txt").mkdir()
        for path, words in {
            str(ROOT / "docs/pictures/scene.jpg"): "can't be read",
            "binary.txt": "must be UTF-8 text",
            "zeros.txt": "U\\+0000|empty name",
            "empty.txt": "has no names",
            "large.txt": "over 1 MiB",
            "folder.txt": "can't be read",
            "absent.txt": "There is no names file",
            "absent.text": "There is no names file",
            "absent.png": "There is no names file",
            "": "empty name",
        }.items():
            with pytest.raises(SFPError, match=words):
                read_names(path)


def test_separators_are_those_of_the_configs():
    from sfp.evaluation.config import read_config

    for name in shipped_lists():
        if (ROOT / f"configs/cfg_{name}.py").is_file():
            model = read_config(name, []).model
            own = Vocabulary.of_config(model.name_path, None, model.get("name_separator", ", "))
            assert [words[-3:] for words in read_names(name)[0]] == [w[-3:] for w in own.words]


class TestUsualBackground:
    def test_it_is_for_few_names(self):
        assert usual_background([["boat"]])[:3] == ["background", "sky", "cloud"]
        assert usual_background([[f"thing {i}"] for i in range(5)])
        assert usual_background([[f"thing {i}"] for i in range(6)]) is None
        assert usual_background([["boat"], ["Background"]]) is None

    @pytest.mark.parametrize(
        ("asked", "gone", "kept"),
        [
            ("sky", ["sky", "cloud"], ["wall", "sea"]),
            ("Clouds", ["sky", "cloud"], ["wall"]),
            ("ocean", ["sea", "river"], ["sky"]),
            ("house", ["building"], ["window", "door"]),
            ("blue sky", ["sky"], ["sea"]),
            ("sea lion", [], ["sea"]),
            ("brick wall", ["wall"], ["fence"]),
        ],
    )
    def test_what_is_asked_for_is_not_in_it(self, asked, gone, kept):
        words = usual_background([["boat"], ["thing", asked]])
        assert not set(gone) & set(words) and set(kept) <= set(words)

    def test_it_fits_any_names(self):
        words = usual_background([["boat"]])
        check_names([words, ["boat"]])
        voc = (ROOT / "configs/cls_voc21.txt").read_text().splitlines()[0].split(", ")
        assert set(words) == {"background", *voc}
