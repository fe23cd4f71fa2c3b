"""DIH-CLIP against the authors' code, alone and in a batch, and head by head."""

from __future__ import annotations

import clip_only
import parity
import pytest
import torch

from sfp.methods import build_method
from sfp.methods._parts import cosine_similarity

CASES = clip_only.settings("dihclip")


def build(case: str):
    own = CASES[case]
    return build_method(
        "DIH-CLIP",
        clip_only.clip_of(case),
        kept_heads=own["topk"],
        pre_layer=own["pre"],
        post_layer=own["post"],
        fuse_layers=own["fuse"],
        res_cls=own["res_cls"],
        beta=own["beta"],
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_in_a_batch(case):
    method, cases = build(case), clip_only.two("dihclip", case)
    windows = clip_only.windows_of("dihclip", cases)
    for batch, members in ((windows[:1], cases[:1]), (windows, dict.fromkeys(cases))):
        found = clip_only.read_out(method, method.tokens(batch), method.grid(batch))
        found["mid_sim"] = cosine_similarity(method.streams(batch)[1])
        for row, member in enumerate(members):
            own = {name: value[row] for name, value in found.items()}
            clip_only.assert_golden("dihclip", member, own)


def test_every_golden_has_its_case():
    assert set(parity.cases("dihclip")) in (set(), set(CASES))


def test_heads_are_chosen_per_image_and_ties_are_kept(clip):
    method = build_method("DIH-CLIP", clip, kept_heads=2)
    sharp, flat = torch.eye(6), torch.full((6, 6), 1 / 6)
    soft = (sharp + flat) / 2
    maps = torch.stack([torch.stack([flat, sharp, soft]), torch.stack([soft, flat, soft])])
    assert method.chosen(maps).flatten(1).tolist() == [[0, 1, 1], [1, 0, 1]]
    method.kept_heads = 1
    assert method.chosen(maps).flatten(1).tolist() == [[0, 1, 0], [1, 0, 1]]  # a tie: both
    method.kept_heads = 4  # more than there are
    assert method.chosen(maps).all()


def test_with_purification_the_middle_layer_is_repaired_too(clip):
    """As in SC-CLIP; off as published."""
    window = parity.case_image("vit12/win1")
    plain, som = (build_method("DIH-CLIP", clip, purify=purify) for purify in (None, True))
    assert plain.purifier is None and som.purify_layers == (11,)
    assert not torch.allclose(plain.streams(window)[1], som.streams(window)[1])
