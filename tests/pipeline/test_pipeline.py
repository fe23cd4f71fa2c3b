"""The whole pipeline against the authors' segmentor, and its batches against single images."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import parity
import pytest
import torch

from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
from sfp.refiners import REFINERS, LabelRefiner
from sfp.stages import Text

PROTOCOLS = {
    "plain": (Protocol(logit_scale=40), (0, 1, 2, 3, 4, 5, 6)),
    "syn": (Protocol(logit_scale=50, prob_thd=0.5, area_thd=0.2), (0, 1, 1, 2, 3, 3, 4)),
}


def pipeline(clip, protocol: Protocol, method: str = "SFP-release", **options) -> Pipeline:
    return Pipeline(
        build_method(method, clip, **options), TextBank(clip, cache_dir=False), protocol
    )


def ask(walk: Pipeline, images, groups, sizes, keep=False) -> list:
    """Labels and probabilities of images, by made-up text vectors."""
    task = Task(Text(parity.text_features(), class_of_query=groups), walk.protocol)
    return walk.segment(images, [task], sizes, keep)[0]


@pytest.mark.parametrize(
    ("file", "method"), [("segmentor_sfp", "SFP-release"), ("segmentor_scclip", "SC-CLIP")]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("image", ["full", "odd"])
def test_equals_the_official_segmentor(image, protocol, file, method, clip):
    arrays = parity.golden(file)
    settings, groups = PROTOCOLS[protocol]
    pixels = parity.image(parity.INDEX["segmentor_images"][image], *parity.INDEX["sizes"][image])
    expected = arrays[f"{image}/{protocol}/labels"]
    walk = pipeline(clip, settings, method)
    ((labels, probabilities),) = ask(walk, [pixels], groups, [expected.shape], True)
    np.testing.assert_allclose(
        probabilities[:, ::9, ::9], arrays[f"{image}/{protocol}/prob"], atol=1e-4, rtol=0
    )
    sure = (
        np.unpackbits(arrays[f"{image}/{protocol}/sure"])[: expected.size]
        .reshape(expected.shape)
        .astype(bool)
    )
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(labels.numpy()[sure], expected[sure])


def test_batches_of_any_size_and_mixed_images_equal_single_ones(clip):
    images = [
        parity.image("full.0", 240, 300),
        parity.image("odd.0", 300, 240),
        parity.image("win0.7", 100, 130),
    ]
    sizes = [(260, 330), (300, 240), (200, 260)]
    groups = tuple(range(7))
    walk = pipeline(clip, Protocol(), "SFP")
    singles = [
        ask(walk, [image], groups, [size])[0][0] for image, size in zip(images, sizes, strict=True)
    ]
    for at_once in (1, 3, 32):
        walk.windows_at_once = at_once
        for (labels, _), single in zip(ask(walk, images, groups, sizes), singles, strict=True):
            assert (labels == single).float().mean() > 0.9999


@pytest.mark.slow
def test_a_batch_that_runs_out_of_memory_is_lowered_and_changes_nothing():
    """In a process that may not take more memory than it nearly has.

    A single window that is too much ends in a sentence.
    """
    code = """
        import resource, sys
        import torch
        import sfp
        from sfp.clip.text_bank import TextBank
        from sfp.methods import build_method
        from sfp.pipeline import Pipeline, Protocol, Task
        from sfp.stages import Text
        torch.set_num_threads(1)
        def walk(at_once, **protocol):
            clip = sfp.load_clip("Toyland", device="cpu")
            bank = TextBank(clip, cache_dir=False)
            return Pipeline(build_method("SFP", clip), bank, Protocol(**protocol), at_once)
        def ask(pipeline, image):
            task = Task(Text(text), pipeline.protocol)
            return pipeline.segment([image], [task], [(300, 300)])[0][0][0]
        image, text = torch.randn(3, 2016, 2016), torch.randn(3, 64)
        small, large, whole = walk(8), walk(289), walk(1, window=0)
        expected = ask(small, image)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20), resource.RLIM_INFINITY))
        found = ask(large, image)
        same = bool((found == expected).float().mean() > 0.999)
        print("lowered", large.windows_at_once < 289, "same", same)
        try:
            ask(whole, torch.randn(3, 1280, 1280))
        except sfp.SFPError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200
    )
    assert "lowered True same True" in done.stdout, done.stderr[-2000:]
    assert "does not fit into the memory of cpu" in done.stdout


def test_window_zero_is_the_whole_image(clip):
    image, text = parity.image("full.0", 240, 304), Text(parity.text_features())
    canvases = []
    for protocol in (Protocol(window=0), Protocol(window=304, stride=304)):
        walk = pipeline(clip, protocol)
        (view,) = walk.views([image])
        canvases.append(walk.score(view, text).canvas())
    whole, grid = canvases
    assert whole.shape == (7, 240, 304)
    torch.testing.assert_close(whole, grid)


def test_pamr_and_thresholds_change_the_labels(clip):
    image, groups = parity.image("full.0", 336, 448), tuple(range(7))

    def labels(protocol):
        return ask(pipeline(clip, protocol), [image], groups, [(336, 448)])[0][0]

    plain, refined = labels(Protocol()), labels(Protocol(pamr_iterations=5))
    background = labels(Protocol(prob_thd=0.9))
    assert torch.equal(refined, labels(Protocol(refine=["PAMR:iterations=5"])))
    assert not torch.equal(plain, refined)
    assert (background == 0).sum() > (plain == 0).sum()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(window=224, stride=300), "leave gaps"),
        (dict(window=224, stride=0), "leave gaps"),
        (dict(window=-1), "leave gaps"),
        (dict(logit_scale=0), "from 1e-06"),
        (dict(prob_thd=1.5), "from 0 to 1"),
        (dict(area_thd=-0.1), "from 0 to 1"),
        (dict(pamr_iterations=-1), "at least 0"),
        (dict(refine=["PARM"]), "did you mean 'PAMR'"),
        (dict(refine=["PAMR"], pamr_iterations=5), "leave one of them out"),
        (dict(refine=[dict(type="PAMR", dilations=[0])]), "at least 1"),
    ],
)
def test_wrong_protocols(settings, words):
    with pytest.raises(SFPError, match=words):
        Protocol(**settings)


def test_nan_pixels_are_refused(clip):
    image = parity.image("full.0", 240, 240)
    image[0, 3, 3] = float("nan")
    with pytest.raises(SFPError, match="NaN or infinite"):
        ask(pipeline(clip, Protocol()), [image], tuple(range(7)), [(240, 240)])


class TestVocabulary:
    def test_synonyms(self):
        words = Vocabulary.from_names(["cat", ["sofa", "couch"], "window"])
        assert words.names == ("cat", "sofa", "window")
        assert words.queries == ("cat", "sofa", "couch", "window") and words.class_of_query == (
            0,
            1,
            1,
            2,
        )

    def test_a_word_may_serve_two_classes_of_a_names_file(self):
        """COCO-Object's official file has "bed" both as a class and among the background words."""
        assert Vocabulary.from_names([["sky", "bed"], "bed"]).class_of_query == (0, 0, 1)

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            ([], "no names"),
            (["cat", ""], "empty name at place 2"),
            (["cat", "  "], "empty name"),
            (["cat", ["dog", ""]], "empty name"),
            (["cat", []], "empty name"),
            (["cat", "dog", "cat"], "duplicate name 'cat' at places 1, 3"),
            ([["cat", "cat"]], "twice"),
            ("cat", "single text"),
        ],
    )
    def test_wrong_names(self, names, words):
        with pytest.raises(SFPError, match=words):
            Vocabulary.from_names(names)

    def test_files(self, tmp_path):
        file = tmp_path / "names.txt"
        file.write_text("sky, wall\ncat\nbackground \n")
        assert Vocabulary.from_file(file).names == ("sky", "cat", "background")
        assert Vocabulary.from_file(file, "; ").names[0] == "sky, wall"
        for content, words in (
            ("", "no names"),
            ("cat\n\ndog\n", "empty name at place 2"),
            ("cat\ncat\n", "duplicate"),
        ):
            file.write_text(content)
            with pytest.raises(SFPError, match=words):
                Vocabulary.from_file(file)
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SFPError, match="UTF-8"):
            Vocabulary.from_file(file)
        with pytest.raises(SFPError, match="no names file"):
            Vocabulary.from_file(tmp_path / "absent.txt")


class TestLabelsThatChangeAfterwards:
    """Probabilities of the labels alone are those of the labels that stay."""

    GROUPS = (0, 1, 2, 3, 4, 5, 6)

    def both(self, walk: Pipeline) -> tuple:
        image = parity.image("win.0", 112, 144)
        ((labels, every),) = ask(walk, [image], self.GROUPS, [(112, 144)], True)
        ((again, own),) = ask(walk, [image], self.GROUPS, [(112, 144)], "label")
        assert torch.equal(labels, again)
        torch.testing.assert_close(own, every.gather(0, labels[None])[0])
        return labels, every

    def test_by_the_method(self, clip):
        regions = torch.arange(112 * 144).view(112, 144) // (28 * 144)  # four stripes

        def masks(picture):
            return torch.stack([regions == number for number in range(1, 4)])

        options = dict(proxy="colour", masks=masks)
        labels, every = self.both(pipeline(clip, Protocol(), "CorrCLIP", **options))
        assert (labels != every.argmax(0)).any()
        assert all(len(labels[regions == number].unique()) == 1 for number in range(1, 4))

    def test_by_a_refiner(self, clip):
        @REFINERS.register("SecondBest")
        class SecondBest(LabelRefiner):
            def __call__(self, labels, probabilities, view, text):
                return probabilities.topk(2, 0).indices[1], probabilities

        try:
            walk = pipeline(clip, Protocol(refine=("SecondBest",)), "ClearCLIP")
            labels, every = self.both(walk)
        finally:
            del REFINERS._classes["SecondBest"]
        assert not (labels == every.argmax(0)).any()
