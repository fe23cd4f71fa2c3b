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
from sfp.pipeline import Pipeline, Protocol, Vocabulary

PROTOCOLS = {
    "plain": (Protocol(logit_scale=40), (0, 1, 2, 3, 4, 5, 6)),
    "syn": (Protocol(logit_scale=50, prob_thd=0.5, area_thd=0.2), (0, 1, 1, 2, 3, 3, 4)),
}


def vocabulary(groups) -> Vocabulary:
    return Vocabulary(
        tuple(f"class {c}" for c in sorted(set(groups))),
        tuple(f"query {q}" for q in range(len(groups))),
        groups,
    )


def pipeline(clip, protocol: Protocol, method: str = "SFP-release", **options) -> Pipeline:
    return Pipeline(
        build_method(method, clip, **options), TextBank(clip, cache_dir=False), protocol
    )


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
    ((labels, probabilities),) = walk(
        [pixels], vocabulary(groups), parity.text_features(), [expected.shape], True
    )
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
    words, text = vocabulary(tuple(range(7))), parity.text_features()
    walk = pipeline(clip, Protocol(), "SFP")
    singles = [
        walk([image], words, text, [size])[0][0] for image, size in zip(images, sizes, strict=True)
    ]
    for at_once in (1, 3, 32):
        walk.windows_at_once = at_once
        for (labels, _), single in zip(walk(images, words, text, sizes), singles, strict=True):
            assert (labels == single).float().mean() > 0.9999


def test_a_batch_that_runs_out_of_memory_is_lowered_and_changes_nothing():
    """In a process that may not take more memory than it nearly has; a single window that is too much ends in a sentence."""
    code = """
        import resource, sys
        import torch
        import sfp
        from sfp.clip.text_bank import TextBank
        from sfp.methods import build_method
        from sfp.pipeline import Pipeline, Protocol, Vocabulary
        torch.set_num_threads(1)
        def walk(at_once, **protocol):
            clip = sfp.load_clip("Toyland", device="cpu")
            return Pipeline(build_method("SFP", clip), TextBank(clip, cache_dir=False), Protocol(**protocol), at_once)
        words = Vocabulary.from_names(["a", "b", "c"])
        image, text = torch.randn(3, 2016, 2016), torch.randn(3, 64)
        small, large, whole = walk(8), walk(289), walk(1, window=0)
        expected = small([image], words, text, [(300, 300)])[0][0]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20), resource.RLIM_INFINITY))
        found = large([image], words, text, [(300, 300)])[0][0]
        print("lowered", large.windows_at_once < 289, "same", bool(torch.equal(found, expected)))
        try:
            whole([torch.randn(3, 1280, 1280)], words, text, [(300, 300)])
        except sfp.SFPError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200
    )
    assert "lowered True same True" in done.stdout, done.stderr[-2000:]
    assert "does not fit into the memory of cpu" in done.stdout


def test_window_zero_is_the_whole_image(clip):
    image, text = parity.image("full.0", 240, 304), parity.text_features()
    whole = pipeline(clip, Protocol(window=0)).score([image], text)[0].canvas()
    grid = pipeline(clip, Protocol(window=304, stride=304)).score([image], text)[0].canvas()
    assert whole.shape == (7, 240, 304)
    torch.testing.assert_close(whole, grid)


def test_pamr_and_thresholds_change_the_labels(clip):
    image, words, text = (
        parity.image("full.0", 336, 448),
        vocabulary(tuple(range(7))),
        parity.text_features(),
    )
    plain = pipeline(clip, Protocol())([image], words, text, [(336, 448)])[0][0]
    refined = pipeline(clip, Protocol(pamr_iterations=5))([image], words, text, [(336, 448)])[0][0]
    background = pipeline(clip, Protocol(prob_thd=0.9))([image], words, text, [(336, 448)])[0][0]
    assert not torch.equal(plain, refined)
    assert (background == 0).sum() > (plain == 0).sum()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(window=224, stride=300), "leave gaps"),
        (dict(window=224, stride=0), "leave gaps"),
        (dict(window=-1), "leave gaps"),
        (dict(logit_scale=0), "above 0"),
        (dict(prob_thd=1.5), r"\[0, 1\]"),
        (dict(area_thd=-0.1), r"\[0, 1\]"),
        (dict(pamr_iterations=-1), "PAMR"),
    ],
)
def test_wrong_protocols(settings, words):
    with pytest.raises(SFPError, match=words):
        Protocol(**settings)


def test_nan_pixels_are_refused(clip):
    image = parity.image("full.0", 240, 240)
    image[0, 3, 3] = float("nan")
    with pytest.raises(SFPError, match="NaN or infinite"):
        pipeline(clip, Protocol())(
            [image], vocabulary(tuple(range(7))), parity.text_features(), [(240, 240)]
        )


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
