"""Methods around the last block of another: which ones can be a base."""

from __future__ import annotations

import pytest

from sfp.errors import SFPError
from sfp.methods import build_method


@pytest.mark.parametrize("name", ["FSA", "ResCLIP"])
@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("", "Unknown method ''"),
        (None, "is None; give a text, or a dict"),
        ("NACLIPP", "did you mean 'NACLIP'"),
        ("SC-CLIP", "give one of"),
        ("ResCLIP", "give one of"),
        ("ClearCLIP:sigma=3", "Unknown option of method ClearCLIP 'sigma'"),
        ("SCLIP:purify=True", "give it purify instead"),
        (dict(name="NACLIP"), "has no type"),
    ],
)
def test_a_wrong_base_is_one_sentence(name, base, words, clip):
    with pytest.raises(SFPError) as caught:
        build_method(name, clip, base=base)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_the_base_reach_it(clip):
    method = build_method("ResCLIP", clip, base="NACLIP:sigma=3")
    assert method.wrapped.sigma == 3.0 and method.changed_options() == dict(base="NACLIP:sigma=3")
    assert build_method("FSA", clip, base=dict(type="NACLIP", sigma=2.0)).wrapped.sigma == 2.0


def test_the_wrapper_purifies(clip):
    method = build_method("ResCLIP", clip, base="SCLIP", purify=True, pm="L2")
    assert method.purifier is not None and method.wrapped.purifier is None
