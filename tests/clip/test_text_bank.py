"""Prompts, ensembling and the cache."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from forked import Program
from safetensors.torch import save_file

from sfp.clip import text_bank
from sfp.clip.clip import l2_normalise
from sfp.clip.prompts import IMAGENET_PROMPTS, PROMPT_SETS
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError


def test_the_prompt_sets():
    assert len(IMAGENET_PROMPTS) == len(set(IMAGENET_PROMPTS)) == 80
    assert {len(prompts) for prompts in PROMPT_SETS.values()} == {80, 85, 1}
    assert all(prompt.count("{}") == 1 for prompts in PROMPT_SETS.values() for prompt in prompts)
    for prompt in (
        "itap of my {}.",
        "the {} in a video game.",
        "a origami {}.",
        "a jpeg corrupted photo of the {}.",
        "graffiti of a {}.",
    ):
        assert prompt in IMAGENET_PROMPTS


def test_ensembling_is_normalise_average_normalise(clip):
    vectors = TextBank(clip, cache_dir=False).encode(["cat", "traffic light"])
    for word, vector in zip(["cat", "traffic light"], vectors, strict=True):
        ids = clip.tokenizer([prompt.format(word) for prompt in IMAGENET_PROMPTS])
        torch.testing.assert_close(
            vector,
            l2_normalise(l2_normalise(clip.model.encode_text(ids)).mean(0)),
            atol=1e-5,
            rtol=1e-5,
        )


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
    "damage", ["one bit anywhere", "another file's vectors", "no checksum", "nothing", "noise"]
)
def test_damage_of_any_kind_is_found(damage, clip, tmp_path):
    vectors = TextBank(clip, "photo", tmp_path).encode(["cat", "dog"])
    (file,) = tmp_path.rglob("*.safetensors")
    sound = file.read_bytes()
    random = np.random.default_rng(0)
    if damage == "one bit anywhere":
        for at in (*random.integers(len(sound), size=40), len(sound) - 1):
            file.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << int(at) % 8]) + sound[at + 1 :])
            assert torch.equal(TextBank(clip, "photo", tmp_path).encode(["cat", "dog"]), vectors)
        return
    if damage == "another file's vectors":  # whole and finite
        digest = torch.zeros(32, dtype=torch.uint8)
        save_file({"vectors": torch.ones_like(vectors), "sha256": digest}, file)
    elif damage == "no checksum":
        save_file({"vectors": torch.ones_like(vectors)}, file)
    else:
        file.write_bytes(b"" if damage == "nothing" else random.bytes(len(sound)))
    assert torch.equal(TextBank(clip, "photo", tmp_path).encode(["cat", "dog"]), vectors)
    assert file.read_bytes() == sound


def test_it_is_bounded_and_what_was_used_lately_stays(clip, tmp_path, monkeypatch):
    names = ("mine.safetensors", "notes.txt", f"{'a' * 64}.png")
    foreign = [tmp_path / "text" / name for name in names]
    foreign[0].parent.mkdir()
    for path in foreign:
        path.write_bytes(bytes(1 << 20))
        os.utime(path, (0, 0))
    monkeypatch.setattr(text_bank, "cache_bound", lambda: 3000)  # some five of these
    words = "abcdefghijklmnop"
    for number, word in enumerate(words):
        TextBank(clip, ["{}"], tmp_path).encode([word])
        for path in text_bank.text_files(tmp_path / "text"):  # as if written at other times
            if path.stat().st_mtime > 1e6:
                os.utime(path, (number, number))
        TextBank(clip, ["{}"], tmp_path).encode(["a"])  # used again and again
    kept = text_bank.text_files(tmp_path / "text")
    assert 2 < len(kept) < 8 and sum(path.stat().st_size for path in kept) <= 3000
    before = clip.text_tower.encoded
    TextBank(clip, ["{}"], tmp_path).encode(["a"])
    TextBank(clip, ["{}"], tmp_path).encode(["p"])
    assert clip.text_tower.encoded == before and all(path.is_file() for path in foreign)
    TextBank(clip, ["{}"], tmp_path).encode(["b"])
    assert clip.text_tower.encoded == before + 1


def test_a_bound_that_is_no_number(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("SFP_CACHE_MIB", "much")
    with pytest.raises(SFPError, match="SFP_CACHE_MIB is 'much'; set it to a whole number"):
        TextBank(clip, ["{}"], tmp_path).encode(["cat"])


WRITE = """
import sys
from pathlib import Path
import torch
from sfp.clip import text_bank
start = torch.full((40, 64), float(sys.argv[2]))
for i in range(30):
    text_bank._keep(Path(sys.argv[1]) / f"{i % 3:064x}.safetensors", start + i % 3)
"""


def test_two_processes_at_once(clip, tmp_path):
    """Both write the same three entries, while this one reads: each read finds a whole entry."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        Program("-c", WRITE, tmp_path, number, cwd=ROOT, environment=environment)
        for number in (1, 2)
    ]
    bank, reads = TextBank(clip, cache_dir=False), 0
    while any(writer.poll() is None for writer in writers):
        for path in tmp_path.glob("0*.safetensors"):
            vectors = bank._read(path, 40)
            assert vectors is not None and len(vectors.unique()) == 1
            reads += 1
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 5 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("imagenet8", "did you mean 'imagenet8"),
        (["a photo"], "exactly one"),
        (["{} and {}"], "exactly one"),
    ],
)
def test_wrong_prompts(prompts, words, clip):
    with pytest.raises(SFPError, match=words):
        TextBank(clip, prompts)


def test_too_long_a_name(clip):
    with pytest.raises(SFPError, match="86 tokens, but CLIP reads 75"):
        TextBank(clip, cache_dir=False).encode(["cat " * 80])


def test_prompts_from_a_file_in_any_language(clip, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffein Foto von {}.\n\n  ein Bild: {}  \n", encoding="utf-8")
    expected = ("ein Foto von {}.", "ein Bild: {}")
    for given in (file, str(file)):
        bank = TextBank(clip, given, False)
        assert bank.prompts == expected
    assert torch.equal(bank.encode(["Hund"]), TextBank(clip, expected, False).encode(["Hund"]))
    for text, words in (("", "is empty"), ("kein Platz", "needs exactly one")):
        file.write_text(text)
        with pytest.raises(SFPError, match=words):
            TextBank(clip, file, False)
    with pytest.raises(SFPError, match=r"absent\.txt can't be read"):
        TextBank(clip, "absent.txt", False)
    with pytest.raises(SFPError, match="Unknown prompt set 'imagenet8'"):
        TextBank(clip, "imagenet8", False)
