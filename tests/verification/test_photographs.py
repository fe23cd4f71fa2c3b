"""The right word among twenty, and the mistake that explains wrong ones."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from sfp.clip.text_bank import TextBank
from sfp.verification.findings import FAILED, OK, Record
from sfp.verification.given import Given
from sfp.verification.photographs import judge, with_other_activation
from sfp.verification.pictures import TWENTY, among_twenty, photographs, toyland_things
from sfp.verification.session import Session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    out = tmp_path_factory.mktemp("photographs")
    return Session(Given(out, model="Toyland", pretrained="toyland"), Record(out))


def test_the_right_word_comes_first_and_none_like_it_after():
    assert among_twenty("cat") == ("cat", *[word for word in TWENTY if word != "cat"])
    assert len(among_twenty("zebra")) == 20 and "person" not in among_twenty("woman")


def test_photographs_that_ship_with_other_packages():
    found = photographs(())
    assert {own.word for own in found} >= {"flower", "temple"}
    assert all(own.pixels.shape[2] == 3 and own.words[0] == own.word for own in found)


def test_shifted_names_are_named(session):
    things = list(toyland_things(1))
    assert judge(session, things, "things", crops=True).verdict == OK
    encode = TextBank.encode
    with patch.object(TextBank, "encode", lambda bank, words: encode(bank, words).roll(1, 0)):
        found = judge(session, things, "things", crops=True)
    assert found.verdict == FAILED and ": names shifted by one; " in found.words


def test_other_activation_of_the_same_weights(session):
    clip = session.clip()
    other = with_other_activation(clip)
    assert other.quick_gelu is not clip.quick_gelu and other.fingerprint == clip.fingerprint
