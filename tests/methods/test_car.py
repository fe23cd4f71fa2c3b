"""CaR against the authors' code, its pictures, its rounds and its whole way."""

from __future__ import annotations

import json

import numpy as np
import parity
import pytest
import second_backbone as cases
import torch
from conftest import ROOT
from PIL import Image

import sfp
from sfp.backbones.second_clip import SecondCLIP
from sfp.clip.clip import l2_normalise
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._visual_prompts import prompted
from sfp.methods.car import SENTENCES, Sentences, centre_crop, likelihood, scaled
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Picture, Text, View

CASES = cases.settings("car")
WORDS = ("boat", "cat", "cow", "dog", "car", "bird", "fish")


def pixels_of(name: str, size) -> np.ndarray:
    planes = (cases.pixels(name, *size) * 255).round().to(torch.uint8)
    return planes.permute(1, 2, 0).numpy()


def picture_of(pixels: np.ndarray, clip) -> Picture:
    return Picture(clip.normalise(torch.from_numpy(pixels).permute(2, 0, 1)), pixels)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code(case):
    own, golden, clip = CASES[case], cases.golden("car", case), cases.clip_of(case)
    method = build_method("CaR", clip, clipes_threshold=own["clipes_threshold"])
    texts = (
        cases.text()
        .vectors[: own["texts"] + own["background_texts"]]
        .split([own["texts"], own["background_texts"]])
    )
    looked = method.look(picture_of(pixels_of(own["image"], own["size"]), clip))
    maps, z = method.maps(looked, *texts)
    cases.close(maps.unflatten(1, looked.grid), golden["cam"], 1e-4, "cam")
    cases.close(z, golden["prob"], 1e-5, "prob")
    boxes = method.boxes(maps, looked.grid)
    np.testing.assert_array_equal(boxes, golden["box"] > 0)
    masks = method.spread(maps, looked)
    cases.close(masks[:, ::4, ::4], golden["proposal"], 1e-4, "proposal")
    images = torch.stack([cases.picture(name, 224, 224) for name in own["score_images"]])
    with parity.seeded(cases.INDEX["seed"]):
        texts = l2_normalise(clip.encode_text(parity.token_ids()))
    found = likelihood(method.class_vectors(images), texts, clip.logit_scale)
    cases.close(found, golden["score"], 1e-4, "score")


def test_every_golden_has_its_case():
    assert {key.rpartition("/")[0] for key in parity.golden("car")} == set(CASES)


@torch.inference_mode()
def test_maps_equal_a_slow_reading_one_text_at_a_time(clip):
    """Each gradient by itself; an empty map is made again without background words."""
    method, own = build_method("CaR", clip), CASES["vit12/rect"]
    looked = method.look(picture_of(pixels_of(own["image"], (176, 256)), clip))
    texts, background = cases.text().vectors.split([4, 3])
    found, _ = method.maps(looked, texts, background)
    for number in range(4):
        with torch.inference_mode(False), torch.enable_grad():
            tokens, trunk = looked.tokens.clone(), method._differentiable
            block = trunk.blocks[-1]
            a = block.normed(tokens).detach().clone().requires_grad_()
            q, k, v = block.qkv(a)
            y = tokens + block.project((q @ k.mT / 8).softmax(-1) @ v)
            y = y + block.mlp(y)
            mean = trunk.readout(y[:, 1:]).mean(1)
            every = torch.cat([texts, background]).clone()
            logits = clip.logit_scale * (mean / mean.norm()) @ every.T
            (grad,) = torch.autograd.grad(logits.softmax(-1)[0, number], a)
        cam = (a.detach()[0, 1:] * grad[0, 1:].mean(0)).sum(1).clamp(min=0)
        cam = cam - cam.min()
        expected = scaled(cam[None] / (1e-15 + cam.max()))[0]
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-3)
    flat = texts[:1].expand(2, -1)  # of two equal texts alone no gradient is left
    alone, _ = method.maps(looked, flat, texts[:0])
    assert not alone.any() and torch.isfinite(alone).all()
    calls, real = [], method._cam

    def counting(looked, texts, background):
        calls.append(len(background))
        maps, z = real(looked, texts, background)
        return (maps * 0 if len(background) else maps), z

    method._cam = counting
    again, _ = method.maps(looked, texts, background)
    assert calls == [3, 0]
    torch.testing.assert_close(again, real(looked, texts, background[:0])[0])


def test_a_clip_loaded_in_inference_mode_works_as_well(clip):
    with torch.inference_mode():
        within = sfp.load_clip(pretrained=parity.state_dict("vit12"), device="cpu")
    assert within.model.visual.proj.is_inference()
    found = []
    for own in (within, sfp.load_clip(pretrained=parity.state_dict("vit12"), device="cpu")):
        method = build_method("CaR", own)
        with torch.inference_mode():
            looked = method.look(picture_of(pixels_of("car.small", (64, 80)), own))
            found.append(method.maps(looked, *cases.text().vectors.split([4, 3]))[0])
    torch.testing.assert_close(*found)


@torch.inference_mode()
def test_the_parameters_get_no_gradient_and_nothing_is_kept(clip):
    method = build_method("CaR", clip)
    looked = method.look(picture_of(pixels_of("car.small", (64, 80)), clip))
    maps, z = method.maps(looked, *cases.text().vectors.split([4, 3]))
    assert not maps.requires_grad and not z.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()


# ------------------------------------------------------------------ pictures
def masked(height: int = 40, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    heat = np.zeros((height, width), np.float32)
    heat[10:31, 12:37] = 0.9
    return pixels, heat


def test_outside_is_blurred_grey_or_black():
    pixels, heat = masked()
    inside = heat > 0.5
    for prompts in (["blur"], ["gray"], ["black"], ["gray", "blur"]):
        (found,) = prompted(pixels, heat[None], 0.5, prompts)
        assert np.array_equal(found[inside], pixels[inside])
        assert not np.array_equal(found[~inside], pixels[~inside])
    (black,) = prompted(pixels, heat[None], 0.5, ["black"])
    assert not black[~inside].any()
    (grey,) = prompted(pixels, heat[None], 0.5, ["gray"])
    red, green, blue = pixels[3, 4].astype(float)
    assert grey[3, 4].tolist() == [round(0.114 * red + 0.587 * green + 0.299 * blue)] * 3


def test_blur_equals_opencv():
    cv2 = pytest.importorskip("cv2")
    pixels, heat = masked()
    inside = heat > 0.5
    (found,) = prompted(pixels, heat[None], 0.5, ["blur"])
    expected = cv2.GaussianBlur(pixels, (15, 15), 0)
    assert np.abs(found[~inside].astype(int) - expected[~inside]).max() <= 1
    both = prompted(pixels, heat[None], 0.5, ["gray", "blur"])[0]  # blurred first, then grey
    grey = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY).astype(int)
    assert np.abs(both[~inside].astype(int) - grey[~inside][:, None]).max() <= 2


def test_marks_are_red_and_around_the_region():
    pixels, heat = masked()
    red = np.array([255, 0, 0])

    def marked(kind):
        (found,) = prompted(pixels, heat[None], 0.5, [kind])
        changed = (found != pixels).any(-1)
        assert (found[changed] == red).all()
        return changed

    rows, columns = marked("rectangle").nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 12, 36)
    expected = np.zeros(heat.shape, bool)
    expected[10:31, 12:37] = True
    expected[11:30, 13:36] = False
    assert np.array_equal(marked("contour"), expected)
    assert np.array_equal(marked("rectangle"), expected)
    circle = marked("circle")
    rows, columns = circle.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 12, 36)
    distance = ((rows - 20) / 10) ** 2 + ((columns - 24) / 12) ** 2
    assert distance.min() > 0.7 and distance.max() < 1.3 and not circle[20, 24]


def test_an_empty_map_leaves_the_picture_as_it_is():
    pixels, heat = masked()
    heats = np.stack([heat * 0, np.full_like(heat, 0.9 / heat.size), heat * 0.1])
    first, second, third = prompted(pixels, heats, 0.5, ["black", "circle"])
    assert first is pixels and second is pixels
    assert not third.any()  # nothing is above the threshold: all of it is outside


def test_centre_crop_is_clips_transform():
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    for size in ((60, 91), (91, 60), (224, 224), (50, 333)):
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Resize(224, InterpolationMode.BICUBIC)(Image.fromarray(pixels))
        assert np.array_equal(centre_crop(pixels, 224), np.asarray(CenterCrop(224)(image)))


# ------------------------------------------------------------------ rounds
def text_of(clip, words=WORDS) -> Text:
    bank = TextBank(clip, "photo", cache_dir=False)
    return Text(bank.encode(words), words, bank=bank)


class Rounds:
    """A method whose rounds' scores are made up; it keeps what each round was asked."""

    def __init__(self, clip, scores, **options):
        self.method, self.asked = build_method("CaR", clip, **options), []
        self.scores = iter(scores)
        self.method.maps = self.maps
        self.method.spread = lambda maps, looked: maps[:, :, None]
        self.method.confidence = lambda *given: torch.tensor(next(self.scores))

    def maps(self, looked, texts, background):
        self.asked.append(texts)
        return torch.arange(len(texts) * 4.0).view(-1, 4), None

    def __call__(self, count: int):
        known = Sentences(
            torch.arange(count)[:, None].float(),
            torch.arange(count)[:, None] + 100.0,
            torch.zeros(count, 15, 1),
            torch.zeros(0, 1),
        )
        looked = type("Looked", (), dict(pixels=None))
        return self.method.recur(looked, known, torch.arange(count), known.background, ())


def test_rounds_end_when_none_is_dropped(clip):
    """Bare words first, a clean origami later; the last round's texts are those that stay."""
    rounds = Rounds(
        clip, [[0.9, 0.1, 0.7, 0.2, 0.8], [0.9, 0.3, 0.8], [0.7, 0.9]], confidence_threshold=0.6
    )
    members, masks = rounds(5)
    assert members.tolist() == [0, 4] and masks.shape == (2, 4, 1)
    assert [own[:, 0].tolist() for own in rounds.asked] == [
        [0, 1, 2, 3, 4],
        [100, 102, 104],
        [100, 104],
    ]


def test_bare_words_are_never_the_last_round(clip):
    rounds = Rounds(clip, [[0.9, 0.8], [0.9, 0.8]])
    assert rounds(2)[0].tolist() == [0, 1] and len(rounds.asked) == 2


def test_the_best_text_stays_where_none_is_sure(clip):
    rounds = Rounds(clip, [[0.1, 0.3, 0.2], [0.2]])
    members, _ = rounds(3)
    assert members.tolist() == [1] and len(rounds.asked) == 2


def test_confidence_is_the_texts_own_picture(clip):
    """A sum over 15 sentences, a softmax over texts again, the diagonal."""
    method = build_method("CaR", clip, visual_prompts=("black",))
    pixels = pixels_of("car.scores", (96, 120))
    masks = torch.zeros(3, 96, 120)
    masks[0, :, :40], masks[1, 20:60, 30:90], masks[2] = 1, 1, 1
    known = method.sentences(text_of(clip, WORDS[:3]))
    assert known.scored.shape == (3, 15, 64) and len(SENTENCES) == 15
    found = method.confidence(pixels, masks, known.scored, method.visual_prompts)
    for number in range(3):
        (shown,) = prompted(pixels, masks[number, None].numpy(), 0.4, ["black"])
        image = clip.normalise(torch.from_numpy(centre_crop(shown, 224).copy()).permute(2, 0, 1))
        cls = clip.trunk.run(image[None], last=11)[0, 0]
        vector = l2_normalise(clip.trunk.readout(cls))
        total = torch.zeros(3)
        for sentence in SENTENCES:
            words = [sentence.format(word) for word in WORDS[:3]]
            rows = l2_normalise(clip.encode_text(clip.tokenize(words)))
            total += (clip.logit_scale * rows @ vector).softmax(0)
        assert found[number] == pytest.approx(float(total.softmax(0)[number]), abs=1e-4)
    other = build_method("CaR", clip, visual_prompts=("black",), scorer_block="L")
    assert not torch.allclose(
        other.confidence(pixels, masks, known.scored, ("black",)), found, atol=1e-3
    )


# ------------------------------------------------------------------ text and labels
def test_sentences_are_made_once_a_vocabulary(clip, monkeypatch):
    method, text, calls = build_method("CaR", clip, background_words=("sea",)), text_of(clip), []
    known = method.sentences(text)
    for rows, words in (
        (known.bare, [*WORDS]),
        (known.clean, [f"a clean origami {word}." for word in WORDS]),
        (known.background, ["a clean origami sea."]),
    ):
        expected = l2_normalise(clip.encode_text(clip.tokenize(words)))
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(TextBank, "encode", lambda *given: calls.append(1))
    assert method.sentences(text_of_same(text)) is known and not calls


def text_of_same(text: Text) -> Text:
    return Text(text.vectors.clone(), text.words, bank=text.bank)


def scene(clip, number: int = 0) -> torch.Tensor:
    pixels = torch.from_numpy(toyland.make_scene("tune", number).image.copy())
    return clip.normalise(pixels.permute(2, 0, 1))[:, :96, : 112 + 16 * number]


def test_several_images_at_once_give_what_each_gives_alone(toyland_clip):
    method = build_method("CaR", toyland_clip, background_words=(), confidence_threshold=0.15)
    protocol = Protocol(window=0)
    walk = Pipeline(method, TextBank(toyland_clip, "photo", cache_dir=False), protocol)
    words = ("sky", "sea", "grass")
    text = Text(walk.text_bank.encode(words), words, bank=walk.text_bank)
    images, sizes = [scene(toyland_clip, i) for i in range(3)], [(90, 100), (96, 128), (50, 60)]
    together = walk.segment(images, [Task(text, protocol)], sizes, keep_probabilities=True)[0]
    for image, size, (labels, kept) in zip(images, sizes, together, strict=True):
        ((alone, alone_kept),) = walk.segment([image], [Task(text, protocol)], [size], True)[0]
        assert torch.equal(labels, alone) and torch.equal(kept, alone_kept)
        assert labels.shape == size and kept.min() >= 0 and kept.max() <= 1


def test_the_background_is_what_no_map_claims(clip):
    method = build_method("CaR", clip, bg_factor=2.0)
    words = ("background", "cat", "dog")
    text = Text(torch.eye(3, 64), words)
    maps = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.3, 0.2], [0.0, 0.4, 0.38], [0.0, 0.0, 0.0]])
    decided = method.decide(maps, text)
    assert decided.argmax(1).tolist() == [1, 0, 1, 0]
    assert decided[:, 0].tolist() == pytest.approx([0.01, 0.49, 0.36, 1.0])
    plain = build_method("CaR", clip, background_class=False)
    assert torch.equal(plain.decide(maps, text), maps)
    other = Text(torch.eye(3, 64), ("sky", "cat", "dog"), (0, 1, 2))
    assert method.foreground(other).all()
    forced = build_method("CaR", clip, background_class=True)
    assert forced.foreground(other).tolist() == [False, True, True]


def test_things_are_painted_over_stuff(clip):
    method = build_method("CaR", clip, stuff=("sky", "sea"), background_class=True)
    words = ("background", "cat", "sky", "dog", "sea")
    bank = TextBank(clip, "photo", cache_dir=False)
    text, asked = Text(bank.encode(words), words, bank=bank), []
    image = scene(clip)[:, :2, :3]
    given = {
        (1, 3): torch.tensor([[[0.9, 0.2, 0.6], [0.5, 0.1, 0.0]], [[0.0, 0.1, 0.7], [0, 0, 0]]]),
        (2, 4): torch.tensor([[[0.8, 0.8, 0.1], [0.6, 0.9, 0.2]], [[0.0, 0.1, 0.9], [0, 0, 0.3]]]),
    }

    def recur(looked, known, members, background, prompts):
        asked.append((tuple(members.tolist()), len(background), prompts))
        return members, given[tuple(members.tolist())]

    method.recur = recur
    method.stuff_prompts = ("gray",)
    looked = type("Looked", (), dict(pixels=np.zeros((2, 3, 3), np.uint8), tokens=image))
    view = View(Picture(image), torch.tensor([[0, 0, 2, 3]]), {}, looked)
    scores = method.score(view, text)
    assert asked == [((2, 4), 2, ("gray",)), ((1, 3), 23, ("circle", "blur"))]
    labels = method.decide(scores, text).argmax(-1)
    assert labels.tolist() == [[1, 2, 3], [2, 2, 0]]


# ------------------------------------------------------------------ a second CLIP
def test_another_clip_scores(clip):
    """By name; part of the provenance, moved with the segmentor's submodules."""
    method = build_method("CaR", clip, scorer="Toyland-clean")
    second = method.backbones["scorer"]
    assert isinstance(second, SecondCLIP) and second.name == "Toyland-clean"
    assert second.fingerprint == second.clip.fingerprint != clip.fingerprint
    assert dict(second.named_parameters()).keys() > {"model.visual.proj"}
    assert second(torch.zeros(2, 3, 64, 96)).shape == (2, 64, 4, 6)
    known = method.sentences(text_of(clip, WORDS[:2]))
    rows = l2_normalise(second.clip.encode_text(second.clip.tokenize(["a photo of a cat."])))
    torch.testing.assert_close(known.scored[1, 1], rows[0], atol=1e-5, rtol=1e-5)
    assert build_method("CaR", clip).backbones == {}


# ------------------------------------------------------------------ bad input
def test_windows_are_refused(clip, toyland_clip):
    method = build_method("CaR", clip)
    with pytest.raises(SFPError, match="CaR takes whole images, but window is 224; give window=0"):
        Pipeline(method, TextBank(clip, cache_dir=False))
    with pytest.raises(SFPError, match="takes whole images, but window is 112"):
        sfp.Segmenter("CaR", toyland_clip, window=112, stride=112)
    assert sfp.Segmenter("CaR", toyland_clip).pipeline.protocol.window == 0
    view = View(Picture(torch.zeros(3, 64, 96)), torch.tensor([[0, 0, 64, 64]]), {})
    with pytest.raises(SFPError, match=r"whole images, but got windows of 64x64 .*window=0"):
        method.score(view, text_of(clip))


def test_text_without_a_bank_is_refused(clip):
    method = build_method("CaR", clip)
    image = cases.picture("car.none", 64, 64)[None]
    with pytest.raises(SFPError, match="this text has vectors alone; give a Text with words"):
        method.scores(image, cases.text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(scorer="ViT-B-61"), "ViT-B-61"),
        (dict(scorer="ViT-B-32", scorer_weights="absent.pt"), "absent.pt"),
        (dict(visual_prompts=["glow"]), "visual_prompts"),
        (dict(confidence_threshold=1.5), "from 0 to 1"),
        (dict(bg_factor=0.0), "above 0"),
    ],
)
def test_mistakes(options, words, clip):
    with pytest.raises(SFPError, match=words):
        build_method("CaR", clip, **options)


def test_stuff_that_is_no_word(clip):
    method = build_method("CaR", clip, stuff=("boats",))
    with pytest.raises(SFPError, match="names 'boats', no word of the vocabulary; did you mean 'b"):
        method.members(text_of(clip))


def test_the_file_itself(tmp_path, clip):
    """At its own size, whatever size the windows have; without one a sentence."""
    pixels = pixels_of("car.file", (70, 100))
    Image.fromarray(pixels).save(tmp_path / "own.png")
    method = build_method("CaR", clip, picture="file")
    small = clip.normalise(torch.zeros(3, 32, 48))
    with torch.inference_mode():
        looked = method.look(Picture(small, path=str(tmp_path / "own.png")))
        assert np.array_equal(looked.pixels, pixels) and looked.grid == (5, 7)
        resized = build_method("CaR", clip).look(Picture(small, pixels))
        assert resized.pixels.shape == (32, 48, 3) and resized.grid == (2, 3)
    with pytest.raises(SFPError, match="original pixels"):
        method.look(Picture(small))


# ------------------------------------------------------------------ the whole way
def test_through_the_command_line(tmp_path, tool, monkeypatch):
    monkeypatch.setenv("SFP_DATA", str(tmp_path / "data"))
    toyland.write_split(tmp_path / "data/toyland", "val", 1)
    code, _, error = tool(
        "test", ROOT / "configs/cfg_toyland.py", "--work-dir", tmp_path / "run", "--cfg-options",
        "model.method=CaR", "model.prompts=photo", "test_dataloader.dataset.scenes=1",
        "test_dataloader.num_workers=0", "short_side=160",
    )  # fmt: skip
    assert (code, error) == (0, "")
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert result["method"] == "CaR" and result["protocol"]["window"] == 0 and result["mIoU"] > 5
