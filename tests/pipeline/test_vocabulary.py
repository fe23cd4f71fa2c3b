"""Names that are one: what CLIP reads alike, and what differs in its Unicode form alone."""

from __future__ import annotations

import pytest

from sfp.errors import SFPError
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
