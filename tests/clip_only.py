"""Golden cases of ``goldens/index_clip_only.json``: pictures, settings, and the comparison.

Everything is read from the index. Tolerances are those that come with the goldens, ten times
float32's own error; integer arrays are equal.
"""

from __future__ import annotations

import numpy as np
import parity
import torch
from conftest import parity_clip
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.methods import Method
from sfp.stages import Picture, Text, View

INDEX = parity.read_index("index_clip_only")
ATOL = {
    "logits": 1e-5, "feat": 5e-5, "feat_full": 5e-5, "cls": 5e-5, "pre": 2e-4, "stream": 2e-4,
    "guide": 2e-4, "sim": 1e-5, "sfr": 1e-5, "sfr_max": 1e-5, "rcs": 1e-5, "rot": 1e-5,
    "attn1": 1e-5, "mid_sim": 1e-5, "prob": 1e-4, "diff": 1e-4, "out": 1e-5, "solved": 1e-5,
    "trust": 1e-5, "w_h": 3e-5, "w_v": 3e-5, "global_sim": 1e-5, "adjusted": 1e-5,
}  # fmt: skip


def settings(file: str) -> dict[str, dict]:
    """The settings of each case of a golden file."""
    own = INDEX["files"].get(file, {})
    return own.get("settings", own.get("protocols", {}))


def clip_of(case: str):
    """The network of a case, whose layers and patch are those of the index."""
    spec = case.split("/")[0]
    sizes = INDEX["specs"][spec]["layers"], INDEX["specs"][spec]["patch"]
    assert parity.spec_sizes(spec) == sizes
    return parity_clip(spec, INDEX["seed"])


def picture(file: str, case: str) -> Tensor:
    """The normalised picture (3, H, W) of a case such as "vit12/win0_thd"."""
    spec, name = case.split("/")
    name = name.split("_")[0]
    own = INDEX["files"][file]["images"][f"{spec}/{name}"]
    with parity.seeded(INDEX["seed"]):
        return parity.image(own, *INDEX["sizes"][name])


def text() -> Text:
    with parity.seeded(INDEX["seed"]):
        return Text(parity.text_features())


def two(file: str, case: str) -> list[str]:
    """The case and another one that differs in nothing but the picture; itself if there is none."""

    def kind(other: str) -> tuple:
        spec, name = other.split("/")
        name, _, changes = name.partition("_")
        return spec, changes, INDEX["sizes"][name]

    same = [other for other in settings(file) if kind(other) == kind(case)]
    return [case, same[(same.index(case) + 1) % len(same)]]


def windows_of(file: str, cases: list[str]) -> Tensor:
    """The pictures of cases, (B, 3, H, W); a second one of the same case is mirrored."""
    pictures = [picture(file, case) for case in cases]
    if len(cases) == 2 and cases[0] == cases[1]:
        pictures[1] = pictures[1].flip(-1)
    return torch.stack(pictures)


def view_of(method: Method, windows: Tensor) -> View:
    """One image's view whose windows are these, for what doesn't look at their places."""
    count, _, height, width = windows.shape
    image = windows.transpose(0, 1).transpose(1, 2).reshape(3, height, count * width)
    boxes = [[0, i * width, height, (i + 1) * width] for i in range(count)]
    view = View(Picture(image), torch.tensor(boxes), method.run(windows))
    assert torch.equal(view.crops(), windows)
    return view


def read_out(method: Method, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """What goldens hold of Y (B, N, C): "pre", "feat", "feat_full", "logits"."""
    features = method.trunk.readout(tokens)
    logits = (l2_normalise(features) @ text().vectors.T).transpose(1, 2).unflatten(2, grid)
    return dict(pre=tokens, feat=features, feat_full=features, logits=logits)


def assert_golden(file: str, case: str, found: dict[str, Tensor]) -> None:
    """Every array that the golden file has of a case."""
    arrays = parity.golden(file)
    tok = arrays.get(f"{case}/tok", np.zeros(0, np.int64))
    whole, some = [0, *(1 + tok)], [0, *(1 + tok[::3])]
    rows = dict(feat=tok, pre=tok, stream=whole, guide=whole)
    rows |= {name: tok[::3] for name in ("sim", "mid_sim", "sfr", "kept", "diff")}
    names = [key.rpartition("/")[2] for key in arrays if key.rpartition("/")[0] == case]
    for name in set(names) - {"tok"}:
        value, expected = np.asarray(found[name]), arrays[f"{case}/{name}"]
        if name in rows:
            value = value[rows[name]]
        if name in ("rcs", "attn1"):
            value = value[:, some]
        if name in ATOL:
            np.testing.assert_allclose(value, expected, atol=ATOL[name], rtol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=name)
    assert "logits" in names or "out" in names


def assert_labels(file: str, protocol: str, labels: Tensor) -> None:
    """Labels (H, W) equal those of a golden segmentor where it was sure."""
    arrays = parity.golden(file)
    expected = arrays[f"{protocol}/labels"]
    sure = np.unpackbits(arrays[f"{protocol}/sure"])[: expected.size].reshape(expected.shape) == 1
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(labels.numpy()[sure], expected[sure])
