"""Folders, repositories and Hugging Face's layouts; tokenizers and text towers that are not CLIP's;
what is known of open_clip's models.
"""

from __future__ import annotations

import json
import sys

import open_clip
import pytest
import tiny_clips
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_clips import CONFIGS, network, tiny_clip, windows

import sfp
from sfp.clip.models import plain_vits, vit_names
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError

transformers = pytest.importorskip("transformers")


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


def refused(words: str, *args, **options) -> None:
    with pytest.raises(SFPError, match=words) as caught:
        sfp.load_clip(*args, device="cpu", **options)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------- folders and repositories
def in_the_hubs_cache(tmp_path, monkeypatch, repository: str, folder) -> None:
    """The files of a folder as Hugging Face's cache keeps them."""
    home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("1")
    (home / "snapshots").mkdir()
    (home / "snapshots/1").symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@torch.inference_mode()
def test_a_folder_and_a_repository(tmp_path, monkeypatch):
    folder = tiny_clips.save("siglip", tmp_path / "made")
    expected = network("siglip").encode_image(windows(1))
    in_the_hubs_cache(tmp_path, monkeypatch, "made/up", folder)
    for named in (
        dict(pretrained=folder),
        dict(model=f"local-dir:{folder}"),
        dict(model="hf-hub:made/up"),
        dict(pretrained="hf-hub:made/up"),
    ):
        clip = sfp.load_clip(**named, device="cpu")
        close(clip.encode_image(windows(1)), expected)
        assert clip.pixel_mean == (0.5, 0.5, 0.5) and clip.logit_bias == -2.0
    assert "hf-hub:made/up" in repr(sfp.load_clip("hf-hub:made/up", device="cpu"))
    from sfp.clip.loading import weights_file

    assert weights_file("hf-hub:made/up", "openai").name == "open_clip_model.safetensors"
    assert weights_file("ViT-B-16", str(folder)) == folder / "open_clip_model.safetensors"
    assert weights_file("hf-hub:not/here", "openai") is None


def test_wrong_packages(tmp_path):
    folder = tiny_clips.save("clip", tmp_path / "made")
    refused("is not on this machine and HF_HUB_OFFLINE is set.*folder", "hf-hub:not/here")
    refused("no name of a repository", "hf-hub:a/b/c/d")
    refused("no folder", "local-dir:/nowhere/at/all")
    refused("brings its own weights.*leave one", f"local-dir:{folder}", "laion400m_e32")
    refused("head_width=16 is given", pretrained=folder, head_width=16)
    config = json.loads((folder / "open_clip_config.json").read_text())
    for change, words in (
        (dict(vision_cfg=dict(config["model_cfg"]["vision_cfg"], width=128)),
         r"The image tower in .* is not that of .*visual\.\S+ is \(.*64.*\) instead of \(.*128"),
        (dict(text_cfg=dict(config["model_cfg"]["text_cfg"], layers=3)),
         r"The text tower in .*transformer\.resblocks\.2\.\S+ is missing"),
        (dict(embed_dim=16), "The network in .* is not that of"),
        (dict(vision_cfg=dict(banana=1)), "makes no network.*banana"),
    ):  # fmt: skip
        changed = {**config, "model_cfg": {**config["model_cfg"], **change}}
        (folder / "open_clip_config.json").write_text(json.dumps(changed))
        refused(words, pretrained=folder)
    (folder / "open_clip_config.json").write_text("{")
    refused("can't be read as JSON", pretrained=folder)
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    refused("has no model_cfg with embed_dim", pretrained=folder)
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused("has no weights", pretrained=folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    refused("in several files", pretrained=folder)


def test_a_text_tower_of_another_model():
    """By name: the sizes are those of the name."""
    weights = {
        **{k: v for k, v in network("siglip").state_dict().items() if k.startswith("visual.")},
        **{k: v for k, v in network("eva02").state_dict().items() if not k.startswith("visual.")},
    }
    refused("The network in the state dict is not that of EVA02-B-16", "EVA02-B-16", weights)
    refused("a CLIP with a timm image tower, whose model must be named", "ViT-B-16", weights)


def test_names_without_a_vit_or_weights():
    refused("The image tower of RN50 is no plain ViT but a ResNet", "RN50")
    refused("swin_base_patch4_window7_224 is no plain ViT", "swin_base_patch4_window7_224")
    refused("vit_relpos_medium", "vit_relpos_medium_patch16_cls_224")
    refused("Unknown weights for ViT-B-16-SigLIP 'openai'.*webli", "ViT-B-16-SigLIP")
    refused("open_clip has no weights of ViT-H-16", "ViT-H-16")
    refused("did you mean 'ViT-B-16-SigLIP'", "ViT-B-16-SigLIP3", "webli")


# -------------------------------------------------------------------------- Hugging Face's layouts
SIZES = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
IMAGES, WORDS = dict(image_size=64, patch_size=16), dict(vocab_size=49408)


def hugging_face(kind: str, **more):
    """A tiny model of transformers with made-up weights, and its folder's files."""
    kinds = {
        "clip": ("CLIP", {**IMAGES, **SIZES}, dict(projection_dim=32)),
        "siglip": ("Siglip", {**IMAGES, **SIZES}, {}),
        "siglip2": ("Siglip2", {**SIZES, "patch_size": 16, "num_patches": 16}, {}),
    }
    name, vision, top = kinds[kind]
    context = 77 if kind == "clip" else 16
    text = {**SIZES, **WORDS, "max_position_embeddings": context, "bos_token_id": 1}
    text["eos_token_id"] = 49407 if kind == "clip" else 1
    config = getattr(transformers, f"{name}Config")(
        vision_config={**vision, **more}, text_config={**text, **more}, **top
    )
    model = getattr(transformers, f"{name}Model")(config).eval().requires_grad_(False)
    torch.manual_seed(3)
    for key, value in model.named_parameters():
        if value.ndim > 1 and "embedding" not in key:
            value.data = torch.randn(value.shape) * value[0].numel() ** -0.5
        elif value.ndim:
            value.data = ("norm" in key) * ("weight" in key) + 0.2 * torch.randn(value.shape)
    return model


def vector(found):
    return getattr(found, "pooler_output", found)


def of_transformers(model, kind, images, ids):
    """transformers' own embeddings of images (B, 3, H, W) and token ids."""
    if kind == "siglip2":
        b, p = len(images), 16
        cells = images.unfold(2, p, p).unfold(3, p, p)  # (B, 3, h, w, p, p)
        cells = cells.permute(0, 2, 3, 4, 5, 1).reshape(b, -1, p * p * 3)
        shapes = torch.tensor([[4, 4]] * b)
        seen = model.get_image_features(cells, torch.ones(b, 16).long(), shapes)
    else:
        seen = model.get_image_features(images)
    return vector(seen), vector(model.get_text_features(ids))


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
@torch.inference_mode()
def test_hugging_faces_layouts_equal_transformers(kind, tmp_path):
    """The same numbers as transformers' own, and as the same weights in open_clip's layout."""
    model, folder = hugging_face(kind), tmp_path / kind
    model.save_pretrained(folder)
    clip, images = sfp.load_clip(pretrained=folder, device="cpu"), windows(2)
    ids = torch.randint(5, 900, (2, clip.text.context))
    if kind == "clip":
        ids[:, -1] = 49407
    seen, read = of_transformers(model, kind, images, ids)
    close(clip.encode_image(images), seen)
    close(clip.encode_text(ids), read)
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert (clip.logit_bias is None) == (kind == "clip")
    dense = sfp.build_method("MaskCLIP", clip)(images)
    # the file alone says as much, but for heads and activation where they are not the layout's own
    alone = sfp.load_clip(
        pretrained=folder / "model.safetensors",
        device="cpu",
        **(dict(quick_gelu=True, head_width=16) if kind == "clip" else {}),
    )
    assert alone.fingerprint == clip.fingerprint
    if kind != "clip":
        assert alone.pixel_mean == (0.5, 0.5, 0.5) and alone.name == "SigLIP 2x64/16"
    # open_clip's layout: what open_clip itself would save of it
    again = tmp_path / "again"
    again.mkdir()
    save_file(
        {k: v.contiguous() for k, v in clip.model.state_dict().items()},
        again / "open_clip_model.safetensors",
    )
    config = open_clip_config(clip, kind)
    (again / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config)))
    other = sfp.load_clip(pretrained=again, device="cpu")
    assert other.fingerprint == clip.fingerprint
    assert torch.equal(sfp.build_method("MaskCLIP", other)(images), dense)


def open_clip_config(clip, kind: str) -> dict:
    """open_clip's config of a converted model."""
    if kind == "clip":
        tower = dict(layers=2, width=64, heads=4, mlp_ratio=4.0)
        vision = dict(image_size=64, patch_size=16, head_width=16, **tower)
        vision.pop("heads")
        text = dict(context_length=77, vocab_size=49408, **tower)
        return dict(embed_dim=32, quick_gelu=True, vision_cfg=vision, text_cfg=text)
    from sfp.clip.checkpoints import from_state_dict

    made = hugging_face(kind)
    config = made.config.to_dict()
    return from_state_dict(made.state_dict(), config=config).config


def test_what_the_layouts_refuse(tmp_path):
    model, folder = hugging_face("siglip"), tmp_path / "made"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for tower, key, value, words in (
        ("vision_config", "hidden_size", 768, "hidden_size=768, but its weights have 64"),
        ("vision_config", "patch_size", 14, "patch_size=14, but its weights have 16"),
        ("text_config", "vocab_size", 32000, "vocab_size=32000, but its weights have 49408"),
        ("text_config", "num_hidden_layers", 12, "num_hidden_layers=12.*have 2"),
        ("vision_config", "layer_norm_eps", 0.1, "layer_norm_eps=0.1"),
        ("vision_config", "hidden_act", "gelu", "activations gelu and gelu_pytorch_tanh"),
    ):
        changed = {**config, tower: {**config[tower], key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        refused(words, pretrained=folder)
    weights = load_file(folder / "model.safetensors")
    some = {k: v for k, v in weights.items() if not k.startswith("text_model.")}
    refused("no CLIPModel, SiglipModel.*nothing for text.token_embedding.weight", pretrained=some)
    some = {k: v for k, v in weights.items() if "0.self_attn.k_proj.weight" not in k}
    refused("but not its keys and values", pretrained=some)
    refused("The network in .* is not that of ViT-B-16-SigLIP", "ViT-B-16-SigLIP", weights)
    refused("quick_gelu=True disagrees", pretrained=weights, quick_gelu=True)


def test_the_activation_of_a_clip_is_its_configs(tmp_path):
    hugging_face("clip", hidden_act="gelu").save_pretrained(tmp_path)
    assert not sfp.load_clip(pretrained=tmp_path, device="cpu").quick_gelu
    refused("disagrees with the weights", pretrained=tmp_path, quick_gelu=True)
    refused("doesn't say whether it was trained", pretrained=tmp_path / "model.safetensors",
            head_width=16)  # fmt: skip


# ----------------------------------------------------------------------- tokenizers and text towers
def test_ids_are_those_of_open_clips_tokenizer(tmp_path):
    folder = tiny_clips.save("siglip", tmp_path)
    clip = sfp.load_clip(pretrained=folder, device="cpu")
    own = open_clip.get_tokenizer(f"local-dir:{folder}")
    texts = ["A photo of the cat!", "the sea"]
    assert torch.equal(clip.tokenize(texts), own(texts))
    assert clip.tokenize(texts)[1].tolist() == [6, 9, 1, *[0] * 13]
    with pytest.raises(SFPError, match=r"has .* tokens, but CLIP reads 14; shorten"):
        clip.tokenize(["the cat " * 9])


@torch.inference_mode()
def test_the_text_bank_keeps_vectors_by_the_tokenizer(tmp_path):
    folder = tiny_clips.save("siglip", tmp_path / "one")
    clip = sfp.load_clip(pretrained=folder, device="cpu")
    cache = tmp_path / "cache"
    vectors = TextBank(clip, ["a photo of the {}"], cache).encode(["cat", "sea"])
    expected = clip.model.encode_text(clip.tokenize(["a photo of the cat"]), normalize=True)
    close(vectors[:1], expected)
    again = sfp.load_clip(pretrained=folder, device="cpu")
    assert torch.equal(
        TextBank(again, ["a photo of the {}"], cache).encode(["cat", "sea"]), vectors
    )
    assert again.text_tower.encoded == 0
    tiny_clips.save_tokenizer(folder, "a photo of the dog sea cat sky zoo")  # cat is another word
    other = sfp.load_clip(pretrained=folder, device="cpu")
    changed = TextBank(other, ["a photo of the {}"], cache).encode(["cat", "sea"])
    assert other.fingerprint == clip.fingerprint and other.text_tower.encoded == 2
    assert not torch.allclose(changed[0], vectors[0])


def test_a_tokenizer_that_is_not_there(tmp_path):
    folder = tiny_clips.save("siglip", tmp_path, tokenizer=False)
    clip = sfp.load_clip(pretrained=folder, device="cpu")  # pictures need none
    words = "The tokenizer 'made/up' of .* can't be had .*HF_HUB_OFFLINE is set.*one folder"
    with pytest.raises(SFPError, match=words):
        clip.tokenize(["cat"])


def test_without_transformers(tmp_path, monkeypatch):
    folder = tiny_clips.save("siglip", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    clip = sfp.load_clip(pretrained=folder, device="cpu")
    with pytest.raises(SFPError, match=r"needs transformers; install it by: .*sfp-ovss\[vision\]"):
        clip.tokenize(["cat"])
    refused("The text tower of .*roberta-base, needs transformers", "roberta-ViT-B-32",
            network("clip").state_dict())  # fmt: skip


@torch.inference_mode()
def test_a_text_tower_of_transformers(tmp_path):
    own = dict(model_type="xlm-roberta", hidden_size=48, num_attention_heads=4, vocab_size=99,
               intermediate_size=64, num_hidden_layers=2, max_position_embeddings=40,
               type_vocab_size=1, pad_token_id=1)  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(own))
    config = json.loads(json.dumps(CONFIGS["clip"]))
    config["text_cfg"] = dict(hf_model_name=str(tmp_path), hf_tokenizer_name="made/up",
                              hf_pooler_type="mean_pooler", hf_proj_type="mlp")  # fmt: skip
    from sfp.clip.models import build_network

    made = build_network(config, False, "made").eval()
    folder = tmp_path / "package"
    folder.mkdir()
    save_file(
        {k: v.contiguous() for k, v in made.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config)))
    clip = sfp.load_clip(pretrained=folder, device="cpu")
    ids = torch.tensor([[0, 7, 8, 2, 1, 1], [0, 9, 2, 1, 1, 1]])
    close(clip.encode_text(ids), made.encode_text(ids))
    assert clip.text.context == 77 and not clip.text_tower.plain


# ---------------------------------------------------------------------------- what is known of each
def test_the_table_has_all_of_open_clips_models():
    known = sfp.clip.models.list_models(all=True)
    assert list(known) == open_clip.list_models()
    takes = [model for model in known.values() if not model.reason]
    assert tuple(model.name for model in takes) == vit_names() and len(takes) == 115
    assert set(plain_vits()) < set(vit_names())
    assert all(model.image_difference < 1e-5 for model in takes)
    assert all(model.text_difference < 1e-5 for model in takes)
    assert all(("SFP" in model.refused) != model.class_token for model in takes)


def test_some_models_by_a_pattern():
    found = sfp.list_models("*siglip2*")
    assert found and all("SigLIP2" in name for name in found)
    model = found["ViT-B-16-SigLIP2"]
    assert (model.layers, model.width, model.heads, model.patch) == (12, 768, 12, 16)
    assert model.tags == ("webli",) and model.pooling == "attention" and not model.prefix
    assert "RN50" not in sfp.list_models() and "ResNet" in sfp.list_models(all=True)["RN50"].reason
    assert sfp.list_models("ViT-B-16")["ViT-B-16"].tags[0] == "openai"


def test_tags_of_another_activation_are_not_listed():
    found = sfp.list_models("ViT-B-16*")
    assert "laion400m_e31" in found["ViT-B-16"].tags
    assert found["ViT-B-16-quickgelu"].tags == (
        "openai",
        "dfn2b",
        "metaclip_400m",
        "metaclip_fullcc",
    )
    with pytest.raises(SFPError, match="disagrees with the weights laion400m_e31"):
        sfp.load_clip("ViT-B-16-quickgelu", "laion400m_e31")
    assert "laion400m_e31" in sfp.list_models()["ViT-B-32-quickgelu"].tags  # trained with it


def test_the_page_is_made_of_the_table():
    from conftest import ROOT

    sys.path.insert(0, str(ROOT / "tools/dev"))
    try:
        import check_models
    finally:
        sys.path.pop(0)
    assert check_models.PAGE.read_text(encoding="utf-8") == check_models.page()


@pytest.mark.slow
@pytest.mark.parametrize("name", vit_names())
def test_every_model_equals_open_clip(name):
    from conftest import ROOT

    sys.path.insert(0, str(ROOT / "tools/dev"))
    try:
        import check_models
    finally:
        sys.path.pop(0)
    row = check_models.check(name)
    assert float(row["image_difference"]) < 1e-5 and float(row["text_difference"]) < 1e-5


def test_probabilities():
    siglip, clip = tiny_clip("siglip"), tiny_clip("clip")
    images, texts = torch.randn(2, 64), torch.randn(3, 64)
    cosines = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    scale, bias = siglip.logit_scale, siglip.logit_bias
    close(siglip.probabilities(images, texts), (scale * cosines + bias).sigmoid())
    assert clip.logit_bias is None
    close(clip.probabilities(images, texts), (clip.logit_scale * cosines).softmax(-1))


def test_a_folder_of_a_tags_name_is_no_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("toyland", "openai", "Toyland"):
        (tmp_path / name).mkdir(exist_ok=True)
    assert sfp.load_clip("Toyland", "toyland", device="cpu").name == "Toyland"
    with pytest.raises(SFPError, match="has no weights"):
        sfp.load_clip(pretrained="./openai", device="cpu")
