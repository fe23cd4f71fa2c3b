"""TLP against the authors' code and a dense solution, and through every entry point."""

from __future__ import annotations

import re

import clip_only
import parity
import pytest
import torch
from PIL import Image

import sfp
from sfp.datasets import toyland
from sfp.refiners import build_refiner
from sfp.refiners.tlp import propagate, solve, text_relation, weigh
from sfp.stages import Picture, View

SETTINGS = clip_only.settings("tlp")
NAMES = list(toyland.CLASSES)


def problem(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture and the scores that the index describes."""
    own = SETTINGS[case]
    form = r"([\d.]+) \+ ([\d.]+) \* proxy_features\(image, seed, (\d+), h, w\)"
    mean, spread, queries = re.fullmatch(form, own["logits"]).groups()
    with parity.seeded(clip_only.INDEX["seed"]):
        image = parity.image(own["image"], *own["size"])
        maps = parity.score_maps(own["image"], int(queries), *own["size"])[0]
    return image, float(mean) + float(spread) * maps


@pytest.mark.parametrize("case", SETTINGS)
def test_equals_the_official_code(case):
    own, every, text = SETTINGS[case], SETTINGS[case]["keep_every"], clip_only.text()
    image, scores = problem(case)
    refiner = build_refiner(dict(type="TLP", grid=own["grid"]))
    out = refiner(scores, View(Picture(image), torch.zeros(1, 4), {}), text)
    found = dict(out=out[:, ::every, ::every])
    if own["scales"] == [1, 1] and f"{case}/solved" in parity.golden("tlp"):
        trust, across, down = weigh(image, scores, text_relation(text.vectors).diag())
        found |= dict(trust=trust, solved=solve(trust, across, down, scores, 25))
        found["w_h"] = torch.nn.functional.pad(across, (1, 0), value=1.0)
        found["w_v"] = torch.nn.functional.pad(down, (0, 0, 1, 0), value=1.0)
    clip_only.assert_golden("tlp", case, found)


def test_many_steps_give_the_dense_solution():
    """(diag(c) + Lap) X = c m, Lap made edge by edge."""
    image, scores = torch.randn(3, 7, 9), 0.2 + 0.03 * torch.randn(5, 7, 9)
    relation = text_relation(clip_only.text().vectors[:5])
    trust, across, down = weigh(image, scores, relation)
    laplacian = torch.zeros(63, 63, dtype=torch.float64)
    edges = [(9 * y + x, 9 * y + x + 1, across[y, x]) for y in range(7) for x in range(8)]
    edges += [(9 * y + x, 9 * y + x + 9, down[y, x]) for y in range(6) for x in range(9)]
    for one, other, weight in edges:
        laplacian[one, one] += weight
        laplacian[other, other] += weight
        laplacian[one, other] -= weight
        laplacian[other, one] -= weight
    system = laplacian + trust.double().flatten().diag()
    exact = torch.linalg.solve(system, (trust * scores).double().flatten(1).T).T
    found = solve(trust.double(), across.double(), down.double(), scores.double(), 400)
    torch.testing.assert_close(found.flatten(1), exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 1), (200, 300)])
def test_constant_maps_stay_and_every_size_works(size):
    relation = text_relation(clip_only.text().vectors)
    maps = torch.full((7, *size), 0.21)
    torch.testing.assert_close(propagate(torch.randn(3, 60, 80), maps, relation, 80, 25), maps)


def test_the_full_text_matrix_is_another_refinement():
    image, scores = torch.randn(3, 40, 50), 0.22 + 0.03 * torch.randn(7, 40, 50)
    view, text = View(Picture(image), torch.zeros(1, 4), {}), clip_only.text()
    before = scores.clone()
    found = {kind: build_refiner(f"TLP:affinity={kind}")(scores, view, text) for kind in
             ("diagonal", "full")}  # fmt: skip
    assert torch.equal(scores, before)
    assert not torch.allclose(found["diagonal"], found["full"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["CLIP", "SFP", "PEARL"])
def test_from_the_segmenter_after_any_method(method, toyland_clip):
    image = toyland.make_scene("val", 2).image
    plain = sfp.Segmenter(method, toyland_clip)(image, NAMES)
    smooth = sfp.Segmenter(method, toyland_clip, refine=["TLP"])(image, NAMES)
    both = sfp.Segmenter(method, toyland_clip, refine=["TLP:grid=40", "PAMR"])(image, NAMES)
    assert (smooth.labels != plain.labels).any() and (both.labels != smooth.labels).any()
    assert "TLP" in sfp.list_refiners()


def test_from_the_command_line(tool, tmp_path):
    arguments = ("--names", "sky, sea, boat", "--model", "Toyland", "--method", "CLIP")
    scene = tmp_path / "scene.png"
    Image.fromarray(toyland.make_scene("val", 2).image).save(scene)
    code, _, error = tool(
        "segment", scene, *arguments, "--options", "refine=[TLP]", "--out", tmp_path / "out"
    )
    assert code == 0, error
    code, _, error = tool(
        "segment", scene, *arguments, "--options", "refine=[TLPP]", "--out", tmp_path / "bad"
    )
    assert code and "did you mean 'TLP'" in error
