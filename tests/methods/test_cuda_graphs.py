"""What ``compiled="reduce-overhead"`` must not keep: CUDA graphs write over what they returned."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

import sfp
from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN


@pytest.fixture
def clip():
    """Toyland's with the first two blocks of its image tower; more only takes longer to compile."""
    weights = {
        key: value
        for key, value in load_file(BUILT_IN["Toyland"]).items()
        if not re.match(r"visual\.transformer\.resblocks\.([2-9]|\d\d)\.", key)
    }
    cut = load_clip(pretrained=weights, quick_gelu=True, head_width=64, device="cpu")
    assert cut.trunk.layers == 2
    return cut


@pytest.mark.filterwarnings("ignore")
def test_what_a_cuda_graph_writes_over_is_not_kept(clip, monkeypatch):
    """A compiler whose results are spoiled as soon as the next step begins, as CUDA graphs' are."""
    returned: list[torch.Tensor] = []

    def overwriting(graph, inputs):
        def run(*given):
            found = graph(*given)
            fresh = [u.clone() if isinstance(u, torch.Tensor) else u for u in found]
            returned.extend(u for u in fresh if isinstance(u, torch.Tensor))
            return tuple(fresh)

        return run

    def spoil():
        for old in returned:
            old.fill_(float("nan")) if old.is_floating_point() else old.zero_()
        returned.clear()

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", spoil)
    compile_really = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, mode: compile_really(function, backend=overwriting)
    )
    monkeypatch.setattr(type(clip.trunk), "windows_at_once", lambda self, h, w: 2)
    monkeypatch.setattr("shutil.which", lambda name: name)
    torch._dynamo.reset()
    for name in ("ClearCLIP", "NACLIP"):
        plain = sfp.build_method(name, clip)
        own = sfp.build_method(name, clip, compiled="reduce-overhead")
        clip.trunk._positions.clear()  # what other tests kept
        sides = (48, 64, 48)
        windows = [torch.randn(3, 3, side, 64) for side in sides]
        found = [own.run(each)["features"] for each in windows]  # in two groups
        for each, features in zip(windows, found, strict=True):
            torch.testing.assert_close(features, plain.run(each)["features"], atol=1e-4, rtol=1e-3)
