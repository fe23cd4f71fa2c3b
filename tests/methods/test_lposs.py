"""LPOSS and LPOSS+: the authors' outputs, slow readings of both graphs, padding, memory, whole
runs and mistakes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import second_backbone as golden
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save_file

import sfp
from sfp.clip.clip import l2_normalise
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._pixels import pad_black, pad_to_patches
from sfp.methods._propagation import PatchGraph, PixelGraph, lab_of, solve
from sfp.pipeline import Pipeline, Protocol
from sfp.pipeline.windows import cut, window_grid
from sfp.stages import Picture, Text, View

CASES = golden.settings("lposs")
GRAPHS = sorted(case for case, own in CASES.items() if "mode" in own)
PIXELS = sorted(case for case, own in CASES.items() if "tau" in own)
COLOUR = dict(dino="colour")
TINY = "vit_tiny_patch16_224"


def close_to_largest(found, expected, what: str = "") -> None:
    golden.close(found, expected, 1e-5 * float(np.abs(expected).max()), what)


def windows_of(image, own) -> list[torch.Tensor]:
    return [cut(image, window) for window in window_grid(*image.shape[1:], own["crop"], 112)]


def made_up(case: str, further: int = 0):
    """The pipeline of a case, its picture, and so many other pictures with maps of their own."""
    own, clip = CASES[case], golden.clip_of(case)
    names = [own["image"], *(f"lposs.other.{i}" for i in range(further))]
    images = [clip.normalise(255 * golden.pixels(name, *own["size"])) for name in names]
    windows = [window for image in images for window in windows_of(image, own)]
    maps = [
        golden.features(f"{own['dino']}.{i}", 48, *own["dino_grid"]) for i in range(len(windows))
    ]
    options = dict(
        neighbours=own["k"], gamma=own["gamma"], sigma=own["sigma"], rho=own["pix_dist_pow"],
        alpha=own["alpha"],
    )  # fmt: skip
    dino = golden.MadeUp(torch.stack(windows), torch.stack(maps))
    method = build_method("LPOSS", clip, dino=dino, **options)
    protocol = Protocol(window=own["crop"], stride=own["stride"] or 112)
    return Pipeline(method, None, protocol, windows_at_once=3), images


@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside another image"])
@pytest.mark.parametrize("case", GRAPHS)
@torch.inference_mode()
def test_equals_official_code(case, beside):
    pipeline, images = made_up(case, beside)
    own, arrays, text = CASES[case], golden.golden("lposs", case), golden.text()
    view, method = pipeline.views(images)[0], pipeline.method
    assert view.boxes[:, :2].tolist() == own["windows"] and view.size == tuple(own["window_size"])
    tok = arrays["tok"]
    before = (view["features"] @ text.vectors.T).flatten(0, 2)
    golden.close(before[tok], arrays["before"], 1e-5)
    close_to_largest(method.score(view, text).flatten(0, 2)[tok], arrays["after"])
    probe = torch.from_numpy(golden.normal("lposs.probe", own["patches"]))[None]
    laplacian = probe - method.alpha * method.graph(view).product(probe)
    golden.close(laplacian[0], arrays["laplacian_probe"], 1e-5)
    scores = pipeline.score(view, text, tuple(own["ori_shape"])).canvas()
    every = own["keep_every"]
    close_to_largest(scores[:, ::every, ::every], arrays["scores"])


@pytest.mark.parametrize("case", PIXELS)
@torch.inference_mode()
def test_pixels_equal_official_code(case):
    own, arrays = CASES[case], golden.golden("lposs", case)
    rgb, every = golden.pixels(own["image"], *own["size"]), own["keep_every"]
    golden.close(lab_of(rgb)[:, ::every, ::every], arrays["lab"], 1e-4)
    start = golden.features(own["scores"], 7, *own["size"]) / own["score_divisor"]
    graph = PixelGraph(rgb, own["tau"], own["neigh"])
    found = graph.maps(solve(graph.product, graph.flat(start), own["alpha"], 10, 1e-6))
    close_to_largest(found[:, ::every, ::every], arrays["after"])
    # the whole way: normalised for CLIP and back
    clip = golden.clip_of(case)
    options = dict(tau=own["tau"], radius=own["neigh"], alpha=own["alpha"], dino="colour")
    method = build_method("LPOSS+", clip, **options)
    view = View(Picture(clip.normalise(255 * rgb)), torch.tensor([[0, 0, *own["size"]]]), {})
    torch.testing.assert_close(clip.denormalise(view.image).clamp(0, 1), rgb, atol=1e-6, rtol=0)
    found = method.refine_pixels(start, view, golden.text())[:, ::every, ::every]
    golden.close(found, arrays["after"], 1e-4 * float(np.abs(arrays["after"]).max()))


# ------------------------------------------------------------------ slow readings
def laplacian_of(w: np.ndarray, alpha: float) -> np.ndarray:
    """I - alpha D^-1/2 (w + w^T) D^-1/2 without the diagonal, in float64."""
    joined = w + w.T
    np.fill_diagonal(joined, 0)
    degree = joined.sum(1)
    degree[degree == 0] = 1
    return np.eye(len(w)) - alpha * joined / np.sqrt(degree[:, None] * degree)


def slow_solve(laplacian: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    """Conjugate gradients of each row, as textbooks have them."""
    rows = []
    for b in start:
        x, r = np.zeros_like(b), b.copy()
        p = r.copy()
        for _ in range(iterations):
            if np.linalg.norm(r) <= 1e-6 * np.linalg.norm(b):
                break
            q = laplacian @ p
            step = (r @ r) / (p @ q)
            x, before, r = x + step * p, r @ r, r - step * q
            p = r + (r @ r) / before * p
        rows.append(x)
    return np.array(rows)


@pytest.mark.parametrize("dense", [0, 1 << 28])
@pytest.mark.parametrize("k", [1, 5, 23, 400])
def test_a_plain_reading_of_the_patch_graph(k, dense, monkeypatch):
    """23 patches; 400 neighbours are all of them, one is the patch itself: nothing is joined."""
    features = l2_normalise(torch.randn(23, 4) + torch.tensor([1.0, 0, 0, 0]))
    places = torch.randint(0, 100, (23, 2)).float()
    monkeypatch.setattr("sfp.methods._propagation._ROWS_BYTES", 4 * 23 * 5)  # five rows at a time
    monkeypatch.setattr("sfp.methods._propagation._DENSE_BYTES", dense)
    graph = PatchGraph(features, places, k, gamma=3.0, sigma=0.02, rho=1.5)
    f, x, w = features.double().numpy(), places.numpy(), np.zeros((23, 23))
    for i in range(23):
        for j in sorted(range(23), key=lambda j: -(f[i] @ f[j]))[:k]:
            distance = np.hypot(*(x[i] - x[j]))
            w[i, j] = max(f[i] @ f[j], 0) ** 3 * np.exp(-0.02 * distance**1.5)
    laplacian = laplacian_of(w, 0.95)
    found = torch.eye(23).double() - 0.95 * graph.product(torch.eye(23).double())
    np.testing.assert_allclose(found, laplacian, atol=1e-6)
    start = torch.randn(3, 23).double()
    for iterations in (1, 4, 10):
        y = solve(graph.product, start, 0.95, iterations, 1e-6)
        slow = slow_solve(laplacian, start.numpy(), iterations)
        np.testing.assert_allclose(y, slow, atol=1e-5 * np.abs(slow).max())
    if k == 1:
        assert torch.equal(y, start)
    y = solve(graph.product, start, 0.95, 500, 1e-12)
    np.testing.assert_allclose(y, np.linalg.solve(laplacian, start.T).T, atol=1e-4)


@pytest.mark.parametrize(("size", "radius"), [((7, 9), 2), ((4, 11), 6), ((3, 4), 6), ((1, 6), 2)])
def test_a_plain_reading_of_the_pixel_graph(size, radius, monkeypatch):
    """An explicit matrix of all pairs; pictures smaller than the square, and of one row."""
    monkeypatch.setattr("sfp.methods._propagation._CPU_NUMBERS", 40)
    rgb = torch.rand(3, *size)
    graph = PixelGraph(rgb, 0.05, radius)
    lab = lab_of(rgb.double()) / torch.tensor([100.0, 128, 128])[:, None, None]
    pixels = list(product(*map(range, size)))
    w = np.zeros((len(pixels),) * 2)
    for (i, a), (j, b) in product(enumerate(pixels), repeat=2):
        if i != j and abs(a[0] - b[0]) <= radius and abs(a[1] - b[1]) <= radius:
            w[i, j] = np.exp(-float((lab[:, *a] - lab[:, *b]).norm()) / 0.05)
    start = torch.randn(4, *size)
    laplacian = laplacian_of(w, 0.95)
    found = graph.maps(graph.flat(start) - 0.95 * graph.product(graph.flat(start)))
    slow = start.flatten(1).double().numpy() @ laplacian
    np.testing.assert_allclose(found.flatten(1), slow, atol=2e-5)
    y = graph.maps(solve(graph.product, graph.flat(start), 0.95, 10, 1e-6)).flatten(1)
    slow = slow_solve(laplacian, start.flatten(1).double().numpy(), 10)
    np.testing.assert_allclose(y, slow, atol=1e-4 * np.abs(slow).max())


def test_lab_of_known_colours():
    """White, black, middle grey and the primaries, as tables of CIE Lab for sRGB under D65 say."""
    colours = {
        (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
        (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
        (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
        (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
        (0.0, 1.0, 0.0): (87.74, -86.18, 83.18),
        (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    }
    rgb = torch.tensor(list(colours)).T[:, None]
    np.testing.assert_allclose(lab_of(rgb)[:, 0].T, list(colours.values()), atol=0.02)


# ------------------------------------------------------------------ properties
@torch.inference_mode()
def test_each_query_has_steps_of_its_own():
    graph = PixelGraph(torch.rand(3, 12, 15), 0.2, 3)
    start = graph.flat(torch.randn(5, 12, 15))
    start[1] = 0
    start[2] *= 1e3
    together = solve(graph.product, start, 0.95, 10, 1e-6)
    for row in range(5):
        alone = solve(graph.product, start[row : row + 1], 0.95, 10, 1e-6)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-10)
    assert not together[1].any()
    start[3, 7] = float("nan")
    spoilt = solve(graph.product, start, 0.95, 10, 1e-6)
    assert spoilt[3].isnan().all() and torch.equal(spoilt[0], together[0])


@torch.inference_mode()
def test_patches_of_different_windows_are_joined(clip):
    """What two windows see alike gets alike scores; either window alone knows of none."""
    image = clip.normalise(255 * golden.pixels("rect.0", 96, 144))
    method = build_method("LPOSS", clip, dino="colour", sigma=0.0)
    pipeline, text = Pipeline(method, None, Protocol(window=96, stride=48)), golden.text()
    (view,) = pipeline.views([image])
    joint = method.score(view, text)
    single = method.scores(view.crops(), text)
    assert not torch.allclose(joint, single, atol=0.1)
    turned = replace(
        view, boxes=view.boxes.flip(0), encoded={k: v.flip(0) for k, v in view.encoded.items()}
    )
    torch.testing.assert_close(method.score(turned, text).flip(0), joint, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_windows_that_are_no_multiples_of_a_patch_get_black_ones(clip, tmp_path):
    image = golden.pixels("rect.0", 230, 300)
    window = clip.normalise(255 * image)[None]
    black = pad_to_patches(clip, window, 16)
    torch.testing.assert_close(black, clip.normalise(255 * F.pad(image, (0, 4, 0, 10)))[None])
    assert torch.equal(pad_black(clip, window, 0, 0), window)

    def nine(windows):
        return F.adaptive_avg_pool2d(windows, 9)

    for base in ("MaskCLIP", "ProxyCLIP:proxy=colour", "ResCLIP"):
        method = build_method("LPOSS", clip, dino=nine, base=base, sigma=0.0)
        dino = {"dino": method.encode(window)["dino"]}
        box = torch.tensor([[0, 0, 230, 300]])
        view = View(Picture(window[0]), box, {**method.encode(window), **dino})
        whole = View(
            Picture(black[0]), torch.tensor([[0, 0, 240, 304]]), {**method.encode(black), **dino}
        )
        found = method.score(view, golden.text())
        assert found.shape == (1, 9, 9, 7)
        torch.testing.assert_close(found, method.score(whole, golden.text()))

    torch.manual_seed(3)
    weights = tmp_path / "tiny.safetensors"
    save_file(timm.create_model(TINY, num_classes=0).state_dict(), weights)
    method = build_method("LPOSS", clip, dino=TINY, dino_weights=str(weights))
    dino = method.backbones["dino"]
    assert dino.positions == "scale" and dino.patch == 16 and dino.reads == "values"
    encoded = method.encode(window)
    assert encoded["dino"].shape == (1, 15, 19, 192)
    assert torch.equal(encoded["dino"], method.encode(black)["dino"])
    view = View(Picture(window[0]), torch.tensor([[32, 48, 262, 348]]), encoded)
    places = method._places(view, (15, 19))
    assert places[0].tolist() == [40, 56] and places[-1].tolist() == [32 + 232, 48 + 296]


@torch.inference_mode()
def test_the_best_word_of_a_background_is_taken_before_resizing(clip):
    """Elsewhere no canvas of pixels is made."""
    text = replace(golden.text(), class_of_query=(0, 0, 0, 1, 1, 2, 3))
    image = clip.normalise(255 * golden.pixels("rect.0", 64, 80))
    for name in ("LPOSS", "LPOSS+"):
        method = build_method(name, clip, dino="colour")
        pipeline = Pipeline(method, None, Protocol())
        (view,) = pipeline.views([image])
        small = pipeline.score(view, golden.text()).canvas()
        found = pipeline.score(view, text, (160, 240)).canvas()
        assert torch.equal(found[0], found[1]) and not torch.equal(found[3], found[4])
        wanted = F.interpolate(small[:3].amax(0)[None, None], size=(160, 240), mode="bilinear")
        torch.testing.assert_close(found[0], wanted[0, 0], atol=1e-4, rtol=1e-4)
        assert method.refines_pixels(text)
        assert method.refines_pixels(golden.text()) == (name == "LPOSS+")


def test_memory_of_the_pixel_graph():
    """448x600 with 21 queries: what lives while it is solved, by its size."""
    graph = PixelGraph(torch.rand(3, 448, 600), 0.01, 6)
    assert len(graph.planes) == 84
    start = torch.zeros(1, 448, 600)
    rows, queries = graph.flat(start), min(21, graph.queries_at_once())
    alive = graph.planes.nbytes + 6 * queries * rows.nbytes + 2 * 21 * start.nbytes
    assert alive < 2**29
    assert graph.queries_at_once() * rows.nbytes * 4 <= 2**28


PEAK = """
import resource, sys, torch
from sfp.methods._propagation import PixelGraph, solve
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores, before = torch.randn(21, 448, 600), peak()
graph = PixelGraph(torch.rand(3, 448, 600), 0.01, 6)
for some in scores.split(graph.queries_at_once()):
    graph.maps(solve(graph.product, graph.flat(some), 0.95, 10, 1e-6)).float()
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
def test_peak_memory_of_the_pixel_graph_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1024


def test_positions_are_resized_by_size_unless_given(clip):
    window = golden.picture("rect.0", 96, 128)[None]
    plain, own = build_method("MaskCLIP", clip), build_method("LPOSS", clip, dino="colour")
    assert own.positional_resize == "size" and "positional_resize" not in own.changed_options()
    sized = build_method("MaskCLIP", clip, positional_resize="size")
    assert torch.equal(own(window), sized(window))
    given = build_method("LPOSS", clip, dino="colour", positional_resize="scale")
    assert torch.equal(given(window), plain(window))
    other = build_method("LPOSS", clip, dino="colour", base="NACLIP")
    assert other.positional_resize == "scale"


# ------------------------------------------------------------------ whole runs and mistakes
def test_more_of_two_scenes_is_right(toyland_clip):
    """Colours as the second model, which Toyland's things are told apart by."""
    part, right = (slice(80, 208), slice(60, 220)), {}
    for name, options in (("MaskCLIP", {}), ("LPOSS", COLOUR), ("LPOSS+", COLOUR)):
        segmenter = sfp.Segmenter(
            name, toyland_clip, short_side=112, window=112, stride=56, **options
        )
        scenes = [toyland.make_scene("tune", number) for number in (1, 3)]
        labels = [segmenter(scene.image[part], list(toyland.CLASSES)).labels for scene in scenes]
        truth = [scene.labels[part] for scene in scenes]
        right[name] = float(np.mean(np.equal(labels, truth)))
    assert right["LPOSS+"] > right["LPOSS"] > right["MaskCLIP"] + 0.02


def test_a_whole_evaluation_by_the_command_line(tool, tmp_path):
    for name, base in (("LPOSS", "MaskCLIP"), ("LPOSS+", "SFP")):
        options = [
            f"model.method={name}",
            f"model.base={base}",
            "model.prompts=['a {}.']",
            "model.window=64",
            "model.stride=32",
            "short_side=64",
            f"test_dataloader.dataset.data_root={tmp_path / 'data'}",
            "test_dataloader.dataset.split=tune",
            "test_dataloader.dataset.scenes=1",
        ]
        folder = tmp_path / name
        code, _, error = tool(
            "test", ROOT / "configs/cfg_toyland.py", "--work-dir", folder, "--cfg-options", *options
        )
        assert code == 0, error
        result = json.loads((folder / "results.json").read_text())
        assert result["method"] == name and result["options"]["dino"] == "colour"
        assert result["backbones"] == {"dino": "colour"} and 0 < result["mIoU"] < 100
        assert result["options"]["base"] == base


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(base="FLOSS"), "base of LPOSS is FLOSS, whose scores are no cosines"),
        (dict(base="LPOSS+"), "base of LPOSS is LPOSS+, whose scores are no cosines"),
        (dict(base="MaskClip"), "Unknown method 'MaskClip'; did you mean 'MaskCLIP'"),
        (dict(variant="bare"), "variant is an option of the base MaskCLIP, not of LPOSS"),
        (dict(dino="resnet18"), "timm's resnet18 takes no windows of other sizes; give dino"),
        (dict(dino=TINY, dino_weights="absent.pt"), "no file absent.pt (dino_weights)"),
        (dict(dino="vit_base_patch16_224.dino"), "pass its path as dino_weights"),
        (dict(dino_positions="none"), "dino_positions of method LPOSS 'none'"),
        (dict(neighbours=0), "neighbours of method LPOSS is 0; give a whole number of at least 1"),
        (dict(alpha=1.0), "alpha of method LPOSS is 1.0"),
        (dict(gamma=-1.0), "gamma of method LPOSS is -1.0"),
        (dict(tau=0.01), "Unknown option of method LPOSS 'tau'"),
    ],
)
def test_mistakes(options, words, clip):
    with pytest.raises(SFPError) as caught:
        build_method("LPOSS", clip, **{"dino": "colour", **options})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_second_model_that_returns_something_else(clip):
    method = build_method("LPOSS", clip, dino=lambda windows: windows[:, 0])
    with pytest.raises(SFPError, match=r"must return a map \(B, C, h', w'\)"):
        method.scores(golden.picture("rect.0", 64, 64)[None], golden.text())


def test_text_of_the_same_meaning_twice_scores_the_same(clip):
    vectors = golden.text().vectors
    method = build_method("LPOSS", clip, dino="colour")
    scores = method.scores(
        golden.picture("rect.0", 96, 112)[None], Text(torch.cat([vectors, vectors[:2]]))
    )
    torch.testing.assert_close(scores[..., :2], scores[..., 7:], atol=1e-5, rtol=1e-5)
