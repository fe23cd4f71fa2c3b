"""FSA against the authors' code over ProxyCLIP, alone and in a batch, and over other bases."""

from __future__ import annotations

import clip_only
import parity
import pytest
import torch

from sfp.methods import build_method
from sfp.methods._base import LOGITS
from sfp.stages import Text, View

CASES = clip_only.settings("fsa")


def build(cases: list[str]):
    """The method as the index says; the proxy has the map of each case, then zeros."""
    own = CASES[cases[0]]
    with parity.seeded(clip_only.INDEX["seed"]):
        each = [CASES[case] for case in cases]
        maps = [parity.score_maps(one["proxy"], one["channels"], *one["hw"]) for one in each]
    base = dict(
        type="ProxyCLIP",
        proxy=lambda windows: torch.cat(maps)[: len(windows)],
        proxy_beta=own["beta"],
        proxy_gamma=own["gamma"],
        pad_to=1,
    )
    return build_method(
        "FSA",
        clip_only.clip_of(cases[0]),
        base=base,
        sharpness=own["lamda"],
        kept_share=own["p"],
        text_scale=own["patch_scale"],
        uniform_scale=own["uniform_scale"],
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_in_a_batch(case):
    cases, text = clip_only.two("fsa", case), clip_only.text()
    method, windows = build(cases), clip_only.windows_of("fsa", cases)
    for batch, members in ((windows[:1], cases[:1]), (windows, dict.fromkeys(cases))):
        grid = method.first(batch)[2]
        if CASES[case]["fsa"]:
            view = clip_only.view_of(method, batch)
            found = clip_only.read_out(method, method.second(view, text), grid)
            found["logits"] = method.score(view, text).permute(0, 3, 1, 2)
            found["diff"] = method.contrast(view.encoded, text)
            found["sim"] = method.likeness(found["diff"])
            found["kept"] = method.kept(found["sim"])
        else:
            found = clip_only.read_out(method, method.tokens(batch), grid)
        for row, member in enumerate(members):
            own = {name: value[row] for name, value in found.items()}
            clip_only.assert_golden("fsa", member, own)


def test_every_golden_has_its_case():
    assert set(parity.cases("fsa")) in (set(), set(CASES))


def slow_second(method, view: View, text: Text) -> torch.Tensor:
    """Y of the first window, (N, C): products of whole maps, pair by pair, head by head."""
    values, maps = view["values"][0], view["attention"][0]
    scores = method.contrast({k: v[:1] for k, v in view.encoded.items()}, text)[0]
    p = scores.softmax(-1)
    count = len(p)
    joint = torch.zeros(count, count)
    for i in range(count):
        divergence = (p[i] * ((p[i] + 1e-10).log() - (p + 1e-10).log())).sum(1).clamp(min=0)
        s = 1 / (1 + divergence)
        total, kept = 0.0, []
        weights = s.softmax(0)
        for j in s.argsort(descending=True, stable=True).tolist():
            total += float(weights[j])
            if total <= method.kept_share or not kept:
                kept.append(j)
        chosen = s[kept]
        joint[i, kept] = (chosen * (method.sharpness * chosen).exp()).softmax(0)
    mixed = []
    for head in range(len(values)):
        own = maps[min(head, len(maps) - 1)]
        first = view["mixed"][0, head]
        mixed.append((joint @ first + own @ joint @ values[head] + joint @ values[head]) / 3)
    block = method.last_block
    out = block.project(torch.stack(mixed)[None])[0]
    if method.wrapped.changes.residual:
        out = out + view["stream"][0]
        out = out + block.mlp(out[None])[0]
    return out


@pytest.mark.parametrize("base", LOGITS)
@torch.inference_mode()
def test_over_other_bases_it_equals_a_slow_reading(base, clip):
    method, text = build_method("FSA", clip, base=base), clip_only.text()
    window = parity.image("win1.1", 112, 160)[None]
    view = clip_only.view_of(method, window)
    second = method.second(view, text)[0]
    # single entries at the edge of what is kept may differ
    near = torch.isclose(second, slow_second(method, view, text), atol=1e-3, rtol=1e-3)
    assert near.float().mean() > 0.99
    plain = build_method(base, clip)
    torch.testing.assert_close(method(window), plain(window), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(method.scores(window, text), plain.scores(window, text), atol=1e-3)


def test_padded_windows_over_proxyclip_are_cut_again(clip):
    method = build_method("FSA", clip, base="ProxyCLIP:proxy=colour")
    scores = method.scores(parity.image("rect.0", 100, 130)[None], clip_only.text())
    assert scores.shape == (1, 100, 130, 7) and torch.isfinite(scores).all()
    assert list(method.backbones) == ["proxy"]
