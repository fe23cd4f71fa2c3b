"""Loading: layouts, archives, activations, names, and what is refused. Files are made by the tests."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time

import open_clip
import parity
import pytest
import torch
from conftest import ROOT, parity_clip
from safetensors.torch import save_file

from sfp.clip import load_clip
from sfp.clip.checkpoints import from_state_dict, read_checkpoint
from sfp.errors import SFPError


@pytest.fixture(scope="module")
def weights():
    return parity.state_dict("vit12")


@pytest.fixture(scope="module")
def embedding():
    return parity_clip("vit12").encode_image(parity.case_image("vit12/win0"))


def same(clip, embedding) -> bool:
    return torch.allclose(clip.encode_image(parity.case_image("vit12/win0")), embedding, atol=1e-5)


def custom_text_layout(weights):
    """open_clip's CustomTextCLIP: the text tower under ``text.``."""
    tops = (
        "token_embedding.",
        "positional_embedding",
        "transformer.",
        "ln_final.",
        "text_projection",
    )
    return {f"text.{key}" if key.startswith(tops) else key: value for key, value in weights.items()}


class TestLayouts:
    def test_state_dict_sizes_are_read_from_shapes(self, weights):
        clip = load_clip(pretrained=weights, device="cpu")
        trunk = clip.trunk
        assert (trunk.layers, trunk.width, trunk.heads, trunk.patch, trunk.native_grid) == (
            12,
            128,
            2,
            16,
            (14, 14),
        )
        assert clip.quick_gelu and clip.embed_dim == 64

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda w: w,
            lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 32},
            lambda w: {k: v.half() for k, v in w.items()},
            lambda w: {
                **w,
                "input_resolution": torch.tensor(224),
                "context_length": torch.tensor(77),
                "vocab_size": torch.tensor(49408),
            },
            custom_text_layout,
        ],
        ids=["plain", "training checkpoint", "half", "OpenAI's bookkeeping", "CustomTextCLIP"],
    )
    def test_pt_files(self, wrap, weights, embedding, tmp_path):
        torch.save(wrap(weights), tmp_path / "openai.pt")
        assert same(load_clip("ViT-B/16", tmp_path / "openai.pt", device="cpu"), embedding)

    def test_safetensors(self, weights, embedding, tmp_path):
        save_file(weights, tmp_path / "openai.safetensors")
        assert same(
            load_clip("ViT-B/16", str(tmp_path / "openai.safetensors"), device="cpu"), embedding
        )

    def test_torchscript_archive_like_openai_ships(self, weights, embedding, tmp_path):
        """A scripted module tree with OpenAI's names in half precision, as ``ViT-B-16.pt`` is."""
        path = tmp_path / "ViT-B-16.pt"
        torch.jit.script(module_tree({key: value.half() for key, value in weights.items()})).save(
            str(path)
        )
        checkpoint = read_checkpoint(path)
        assert checkpoint.quick_gelu is True
        assert set(checkpoint.weights) == set(weights)
        assert same(load_clip("ViT-B/16", path, device="cpu"), embedding)

    def test_full_size_vit_b_16_in_openai_layout(self, tmp_path):
        """86 M + 63 M made-up weights through the real loading code, equal to open_clip's own forward."""
        torch.manual_seed(1)
        config = open_clip.get_model_config("ViT-B-16")
        model = open_clip.CLIP(
            config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True
        ).eval()
        weights = {
            key: value.half() for key, value in model.state_dict().items() if key != "attn_mask"
        }
        bookkeeping = dict(
            input_resolution=torch.tensor(224),
            context_length=torch.tensor(77),
            vocab_size=torch.tensor(49408),
        )
        torch.save({**weights, **bookkeeping}, tmp_path / "b16.pt")
        clip = load_clip("ViT-B/16", tmp_path / "b16.pt", device="cpu")
        trunk = clip.trunk
        assert (trunk.layers, trunk.width, trunk.heads, trunk.patch, clip.embed_dim) == (
            12,
            768,
            12,
            16,
            512,
        )
        assert clip.name == "ViT-B-16" and clip.quick_gelu
        window = torch.randn(1, 3, 224, 224)
        model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
        with torch.no_grad():
            torch.testing.assert_close(
                clip.encode_image(window), model.encode_image(window), atol=1e-4, rtol=1e-4
            )
            ids = clip.tokenize(["a photo of a cat.", "a dog"])
            full = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
            torch.testing.assert_close(
                clip.encode_text(ids), model.encode_text(full), atol=1e-5, rtol=1e-4
            )


def full_size(name: str, path) -> None:
    """Weights of a named model's sizes in OpenAI's layout and half precision, made of one repeated stretch of noise."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        shapes = open_clip.CLIP(
            config["embed_dim"], config["vision_cfg"], config["text_cfg"]
        ).state_dict()
    noise = torch.randn(1 << 16, generator=torch.Generator().manual_seed(3)).half() * 0.02

    def made(key: str, shape: torch.Size) -> torch.Tensor:
        if "ln_" in key and key.endswith("weight"):
            return torch.ones(shape, dtype=torch.half)
        return noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape)

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            key: made(key, value.shape).contiguous()
            for key, value in shapes.items()
            if key != "attn_mask"
        },
        path,
    )


class TestBackbones:
    """OpenAI's, LAION's and MetaCLIP's models, by their sizes and tags; their weights are made up."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ViT-B/32", (12, 768, 12, 32, (7, 7), 512, 8)),
            ("ViT-L/14@336px", (24, 1024, 16, 14, (24, 24), 768, 12)),
        ],
    )
    def test_sizes_follow_the_checkpoint(self, name, expected, tmp_path):
        from sfp.methods import build_method

        path = tmp_path / "openai.safetensors"
        full_size(name.replace("/", "-").replace("@336px", "-336"), path)
        clip = load_clip(name, path, device="cpu", precision="bf16")
        trunk = clip.trunk
        text_heads = clip.model.transformer.resblocks[0].attn.num_heads
        assert (
            trunk.layers,
            trunk.width,
            trunk.heads,
            trunk.patch,
            trunk.native_grid,
            clip.embed_dim,
            text_heads,
        ) == expected
        features = build_method("SC-CLIP", clip)(torch.randn(1, 3, 224, 280))
        assert (
            features.shape == (1, 224 // trunk.patch, 280 // trunk.patch, clip.embed_dim)
            and torch.isfinite(features).all()
        )

    def test_tags_load_from_the_hubs_cache_with_their_activation(self, tmp_path):
        """LAION-400M has GELU, MetaCLIP QuickGELU, whatever the name says; nothing is downloaded."""
        tags = {"laion400m_e32": False, "metaclip_400m": True, "metaclip_fullcc": True}
        weights = tmp_path / "made.safetensors"
        full_size("ViT-B-16", weights)
        for tag in tags:
            entry = open_clip.get_pretrained_cfg("ViT-B-16", tag) or open_clip.get_pretrained_cfg(
                "ViT-B-16-quickgelu", tag
            )
            repository, _, file = entry["hf_hub"].rpartition("/")
            folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
            (folder / "snapshots/1").mkdir(parents=True)
            (folder / "refs").mkdir()
            (folder / "refs/main").write_text("1")
            (folder / "snapshots/1" / (file or "open_clip_model.safetensors")).symlink_to(weights)
        code = f"import sfp; print([sfp.load_clip('ViT-B/16', tag, device='cpu').quick_gelu for tag in {list(tags)}])"
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.stdout.strip() == str(list(tags.values())), done.stderr[-1500:]

    def test_a_head_width_that_does_not_fit(self, weights):
        with pytest.raises(SFPError, match="head_width=48 does not divide"):
            load_clip(pretrained=weights, device="cpu", head_width=48)


def module_tree(weights) -> torch.nn.Module:
    """Nested modules whose parameters have the given dotted names."""

    class Node(torch.nn.Module):
        def forward(self):
            return 0

    root = Node()
    for key, value in weights.items():
        *folders, name = key.split(".")
        node = root
        for folder in folders:
            if folder not in node._modules:
                node.add_module(folder, Node())
            node = node._modules[folder]
        node.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    return root


class TestActivation:
    def saved(self, weights, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)
        return path

    def test_names_in_the_path_tell(self, weights, tmp_path):
        laion = self.saved(
            weights, tmp_path / "models--timm--vit.laion400m_e32/open_clip_model.safetensors"
        )
        meta = self.saved(
            weights, tmp_path / "models--timm--vit.metaclip_400m/open_clip_model.safetensors"
        )
        assert not load_clip("ViT-B-16", laion, device="cpu").quick_gelu
        assert load_clip("ViT-B-16", meta, device="cpu").quick_gelu

    def test_an_unknown_file_is_taken_for_openai_with_a_warning(self, weights, tmp_path):
        file = self.saved(weights, tmp_path / "mine.safetensors")
        with pytest.warns(UserWarning, match="quick_gelu=False"):
            assert load_clip("ViT-B-16", file, device="cpu").quick_gelu
        assert not load_clip("ViT-B-16", file, device="cpu", quick_gelu=False).quick_gelu

    def test_activation_matters(self, weights, embedding):
        assert not same(load_clip(pretrained=weights, device="cpu", quick_gelu=False), embedding)

    def test_disagreement_is_an_error(self, weights, tmp_path):
        laion = self.saved(weights, tmp_path / "laion400m_e32.safetensors")
        with pytest.raises(SFPError, match="plain GELU"):
            load_clip("ViT-B-16-quickgelu", laion, device="cpu")
        with pytest.raises(SFPError, match="disagrees"):
            load_clip("ViT-B-16", laion, device="cpu", quick_gelu=True)
        with pytest.raises(SFPError, match="plain GELU"):
            load_clip("ViT-B-16-quickgelu", "laion2b_s34b_b88k", device="cpu")

    @pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
    def test_openai_tags_mean_quick_gelu_whatever_the_name_says(self, name):
        for spelling in (name, f"{name}-quickgelu"):
            assert (open_clip.get_pretrained_cfg(spelling, "openai") or {"quick_gelu": True})[
                "quick_gelu"
            ]


class TestRefusals:
    def refused(self, match, *args, **kwargs):
        with pytest.raises(SFPError, match=match) as caught:
            load_clip(*args, device="cpu", **kwargs)
        assert "\n" not in str(caught.value)

    def test_names_and_tags(self):
        self.refused("did you mean 'ViT-B-16'", "ViT-B-17")
        self.refused("Unknown CLIP model 'RN50'", "RN50")
        self.refused("did you mean 'openai'", "ViT-B/16", "opanai")
        self.refused("Toyland model has no weights", "Toyland", "laion400m_e32")
        self.refused("Unknown precision", "Toyland", precision="fp8")

    def test_files_that_are_no_checkpoints(self, weights, tmp_path):
        self.refused("no checkpoint file", "ViT-B/16", tmp_path / "absent.pt")
        (tmp_path / "text.pt").write_text("<html>not found</html>")
        self.refused("can't be read", "ViT-B/16", tmp_path / "text.pt")
        torch.save(weights, tmp_path / "whole.pt")
        (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
        self.refused("can't be read", "ViT-B/16", tmp_path / "cut.pt")
        save_file(weights, tmp_path / "whole.safetensors")
        (tmp_path / "cut.safetensors").write_bytes(
            (tmp_path / "whole.safetensors").read_bytes()[:100_000]
        )
        self.refused("can't be read", "ViT-B/16", tmp_path / "cut.safetensors")

    @pytest.mark.parametrize(
        ("weights", "match"),
        [
            ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "ResNet CLIP"),
            ({"vision_model.embeddings.class_embedding": torch.zeros(1)}, "Hugging Face"),
            ({"fc.weight": torch.zeros(1)}, "lacks visual.conv1.weight"),
            ({}, "instead of a state dict"),
        ],
    )
    def test_other_models(self, weights, match):
        with pytest.raises(SFPError, match=match):
            from_state_dict(weights)

    def test_nan_and_wrong_sizes(self, weights, tmp_path):
        broken = {**weights, "visual.proj": weights["visual.proj"] * float("nan")}
        with pytest.raises(SFPError, match=r"NaN or infinite numbers in visual\.proj"):
            load_clip(pretrained=broken)
        torch.save(weights, tmp_path / "openai.pt")
        self.refused("12 layers of 128", "ViT-L/14", tmp_path / "openai.pt")
        missing = {
            key: value
            for key, value in weights.items()
            if key != "visual.transformer.resblocks.3.ln_1.weight"
        }
        with pytest.raises(SFPError, match="don't fit"):
            load_clip(pretrained=missing)

    def test_a_pickle_that_would_run_code_is_never_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"visual.conv1.weight": Bomb()}))
        torch.save({"visual.conv1.weight": Bomb()}, tmp_path / "zipped.pt")
        for name in ("bomb.pt", "zipped.pt"):
            self.refused("can't be read", "ViT-B/16", tmp_path / name)
        assert not (tmp_path / "ran").exists()

    def test_a_torchscript_archive_that_would_run_code_is_never_run(self, tmp_path):
        import zipfile

        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
            archive.writestr("script/data.pkl", pickle.dumps(Bomb()))
            archive.writestr("script/constants.pkl", pickle.dumps(()))
        self.refused("weights have no need of", "ViT-B/16", tmp_path / "script.pt")
        assert not (tmp_path / "ran").exists()

    def test_no_network_is_known_within_ten_seconds(self, monkeypatch):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
        started = time.monotonic()
        self.refused(r"there is no network.*ViT-B-16\.pt.*Toyland", "ViT-B/16")
        assert time.monotonic() - started < 10

    def test_offline_mode(self):
        self.refused(
            r"HF_HUB_OFFLINE is set.*vit_l_14-laion400m_e32.*Toyland", "ViT-L-14", "laion400m_e32"
        )

    def test_cuda_without_a_gpu(self, weights):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(SFPError, match="device='cuda' can't be used here"):
            load_clip(pretrained=weights, device="cuda")


def test_toyland_comes_with_the_package(toyland_clip):
    assert toyland_clip.name == "Toyland" and toyland_clip.quick_gelu
    assert same_fingerprint(toyland_clip, load_clip(pretrained="toyland", device="cpu"))


def same_fingerprint(a, b) -> bool:
    return a.fingerprint == b.fingerprint


def test_fingerprint_follows_the_weights_not_the_precision(weights, clip):
    assert (
        load_clip(pretrained=weights, precision="bf16", device="cpu").fingerprint
        == clip.fingerprint
    )
    other = {**weights, "visual.proj": weights["visual.proj"] + 1e-3}
    assert load_clip(pretrained=other, device="cpu").fingerprint != clip.fingerprint
