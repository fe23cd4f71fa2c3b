"""Prompts, ensembling and the cache (methods.md 3.1-3.2)."""

from __future__ import annotations

import pytest
import torch

from sfp.clip.clip import unit
from sfp.clip.prompts import IMAGENET_PROMPTS, PROMPT_SETS
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError


def test_the_prompt_sets():
    assert len(IMAGENET_PROMPTS) == len(set(IMAGENET_PROMPTS)) == 80
    assert {len(prompts) for prompts in PROMPT_SETS.values()} == {80, 85, 1}
    assert all(prompt.count("{}") == 1 for prompts in PROMPT_SETS.values() for prompt in prompts)
    for prompt in ("itap of my {}.", "the {} in a video game.", "a origami {}.", "a jpeg corrupted photo of the {}.", "graffiti of a {}."):
        assert prompt in IMAGENET_PROMPTS


def test_ensembling_is_normalise_average_normalise(clip):
    vectors = TextBank(clip, cache_dir=False).encode(["cat", "traffic light"])
    for word, vector in zip(["cat", "traffic light"], vectors, strict=True):
        ids = clip.tokenizer([prompt.format(word) for prompt in IMAGENET_PROMPTS])
        torch.testing.assert_close(vector, unit(unit(clip.model.encode_text(ids)).mean(0)), atol=1e-5, rtol=1e-5)


def test_cutting_the_padding_changes_nothing(clip):
    ids = clip.tokenize(["a cat", "a photo of a very old brown dog on a sofa"])
    assert ids.shape[1] < 20
    full = clip.tokenizer(["a cat", "a photo of a very old brown dog on a sofa"])
    torch.testing.assert_close(clip.encode_text(ids), clip.encode_text(full), atol=1e-5, rtol=1e-5)


def test_each_text_is_encoded_once(clip):
    bank, before = TextBank(clip, ["a {}.", "the {}."], cache_dir=False), clip.text_tower.encoded
    vectors = bank.encode(["cat", "dog", "cat"])
    assert clip.text_tower.encoded - before == 4
    assert vectors.shape == (3, clip.embed_dim) and torch.equal(vectors[0], vectors[2])


def test_a_second_start_encodes_nothing(clip, tmp_path):
    first = TextBank(clip, cache_dir=tmp_path).encode(["cat", "dog"])
    before = clip.text_tower.encoded
    assert torch.equal(TextBank(clip, cache_dir=tmp_path).encode(["cat", "dog"]), first)
    assert clip.text_tower.encoded == before
    TextBank(clip, cache_dir=tmp_path).encode(["cat", "cow"])  # other names
    assert clip.text_tower.encoded == before + 160
    TextBank(clip, "photo", cache_dir=tmp_path).encode(["cat", "dog"])  # other prompts
    assert clip.text_tower.encoded == before + 162


def test_other_weights_have_their_own_entries(clip, tmp_path):
    from conftest import parity_clip

    TextBank(clip, cache_dir=tmp_path).encode(["cat"])
    TextBank(parity_clip("vit24-p14"), cache_dir=tmp_path).encode(["cat"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_damaged_entry_is_made_again(clip, tmp_path):
    vectors = TextBank(clip, "photo", tmp_path).encode(["cat"])
    (file,) = tmp_path.rglob("*.safetensors")
    sound = file.read_bytes()
    file.write_bytes(sound[: len(sound) // 2])
    assert torch.equal(TextBank(clip, "photo", tmp_path).encode(["cat"]), vectors)
    assert file.read_bytes() == sound


@pytest.mark.parametrize(
    ("prompts", "words"), [("imagenet8", "did you mean 'imagenet8"), (["a photo"], "exactly one"), (["{} and {}"], "exactly one")]
)
def test_wrong_prompts(prompts, words, clip):
    with pytest.raises(SFPError, match=words):
        TextBank(clip, prompts)


def test_too_long_a_name(clip):
    with pytest.raises(SFPError, match="86 tokens, but CLIP reads 75"):
        TextBank(clip, cache_dir=False).encode(["cat " * 80])
