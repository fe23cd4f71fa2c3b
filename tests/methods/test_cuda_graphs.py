"""What ``compiled="reduce-overhead"`` must not keep: CUDA graphs write over what they returned."""

from __future__ import annotations

import pytest
import torch

import sfp


# over 5 s: a trunk is compiled; once for both methods
@pytest.mark.filterwarnings("ignore")
def test_what_a_cuda_graph_writes_over_is_not_kept(toyland_clip, monkeypatch):
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
    monkeypatch.setattr(type(toyland_clip.trunk), "windows_at_once", lambda self, h, w: 2)
    monkeypatch.setattr("shutil.which", lambda name: name)
    torch._dynamo.reset()
    for name in ("ClearCLIP", "NACLIP"):
        plain = sfp.build_method(name, toyland_clip)
        own = sfp.build_method(name, toyland_clip, compiled="reduce-overhead")
        toyland_clip.trunk._positions.clear()  # what other tests kept
        sides = (48, 64, 48)
        windows = [torch.randn(3, 3, side, 64) for side in sides]
        found = [own.run(each)["features"] for each in windows]  # in two groups
        for each, features in zip(windows, found, strict=True):
            torch.testing.assert_close(features, plain.run(each)["features"], atol=1e-4, rtol=1e-3)
