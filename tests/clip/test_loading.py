"""Loading: layouts, archives, heads, activations, names, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import time
import warnings
import zipfile

import open_clip
import parity
import pytest
import torch
from conftest import parity_clip
from huggingface_hub import constants
from safetensors.torch import save_file

import sfp
from sfp.clip import load_clip
from sfp.clip.checkpoints import Checkpoint, from_state_dict, read_checkpoint
from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD
from sfp.clip.loading import _config_of, _normalisation
from sfp.clip.models import plain_vits
from sfp.clip.published import entry_of, offline_hint
from sfp.errors import SFPError

HEADS = dict(device="cpu", head_width=64)  # the parity models have sizes of no open_clip model
TINY = dict(**HEADS, quick_gelu=True)
BOOKKEEPING = dict(
    input_resolution=torch.tensor(224),
    context_length=torch.tensor(77),
    vocab_size=torch.tensor(49408),
)


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
    tops = {"token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"}
    return {f"text.{k}" if k.split(".")[0] in tops else k: v for k, v in weights.items()}


class TestLayouts:
    def test_state_dict_sizes_are_read_from_shapes(self, weights):
        clip = load_clip(pretrained=weights, device="cpu")
        trunk = clip.trunk
        assert (trunk.layers, trunk.width, trunk.heads, trunk.patch) == (12, 128, 2, 16)
        assert trunk.native_grid == (14, 14) and clip.quick_gelu and clip.embed_dim == 64

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda w: w,
            lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 32},
            lambda w: {k: v.half() for k, v in w.items()},
            lambda w: {**w, **BOOKKEEPING},
            custom_text_layout,
        ],
        ids=["plain", "training checkpoint", "half", "OpenAI's bookkeeping", "CustomTextCLIP"],
    )
    def test_pt_files(self, wrap, weights, embedding, tmp_path):
        torch.save(wrap(weights), tmp_path / "any.pt")
        assert same(load_clip("ViT-B/16", tmp_path / "any.pt", **TINY), embedding)

    def test_safetensors(self, weights, embedding, tmp_path):
        save_file(weights, tmp_path / "any.safetensors")
        assert same(load_clip("ViT-B/16", str(tmp_path / "any.safetensors"), **TINY), embedding)

    def test_torchscript_archive_like_openai_ships(self, weights, embedding, tmp_path):
        """A scripted module tree with OpenAI's names in half precision, as ``ViT-B-16.pt`` is.

        It shows activation and heads by itself; an archive without OpenAI's bookkeeping doesn't.
        """
        half = {key: value.half() for key, value in weights.items()}
        path = tmp_path / "any.pt"
        torch.jit.script(module_tree({**half, **BOOKKEEPING})).save(str(path))
        assert set(read_checkpoint(path).weights) == set(weights)
        assert same(load_clip("ViT-B/16", path, device="cpu"), embedding)
        torch.jit.script(module_tree(half)).save(str(path))
        with pytest.raises(SFPError, match="quick_gelu=True or quick_gelu=False"):
            load_clip("ViT-B/16", path, **HEADS)

    # over 5 s: 150 million weights are drawn, written, read and compared in use
    def test_full_size_vit_b_16_in_openai_layout(self, tmp_path):
        """86 M + 63 M made-up weights: outputs equal to open_clip's."""
        torch.manual_seed(1)
        config = open_clip.get_model_config("ViT-B-16")
        model = open_clip.CLIP(
            config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True
        ).eval()
        weights = {
            key: value.half() for key, value in model.state_dict().items() if key != "attn_mask"
        }
        torch.save({**weights, **BOOKKEEPING}, tmp_path / "b16.pt")
        clip = load_clip("ViT-B/16", tmp_path / "b16.pt", device="cpu")
        trunk = clip.trunk
        assert (trunk.layers, trunk.width, trunk.heads, trunk.patch) == (12, 768, 12, 16)
        assert clip.name == "ViT-B-16" and clip.quick_gelu and clip.embed_dim == 512
        with pytest.raises(SFPError, match="quick_gelu=True or quick_gelu=False"):
            load_clip(pretrained=weights, device="cpu")  # LAION's look the same in memory
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
    """Weights of a named model's sizes, half precision, of one repeated stretch of noise."""
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
    """OpenAI's, LAION's and MetaCLIP's models by sizes and tags; their weights are made up."""

    # over 5 s: the sizes are those of the largest published networks
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ViT-B/32", (12, 768, 12, 32, (7, 7), 512, 8)),
            ("ViT-L/14@336px", (24, 1024, 16, 14, (24, 24), 768, 12)),
        ],
    )
    def test_sizes_follow_the_checkpoint(self, name, expected, tmp_path):
        from sfp.methods import build_method

        path = tmp_path / "any.safetensors"
        full_size(name.replace("/", "-").replace("@336px", "-336"), path)
        clip = load_clip(name, path, device="cpu", precision="bf16", quick_gelu=True)
        trunk, text_heads = clip.trunk, clip.model.transformer.resblocks[0].attn.num_heads
        sizes = (trunk.layers, trunk.width, trunk.heads, trunk.patch, trunk.native_grid)
        assert (*sizes, clip.embed_dim, text_heads) == expected
        features = build_method("SC-CLIP", clip)(torch.randn(1, 3, 224, 280))
        grid = (224 // trunk.patch, 280 // trunk.patch)
        assert features.shape == (1, *grid, clip.embed_dim) and torch.isfinite(features).all()

    # over 5 s: files of the sizes of the published networks are read
    @pytest.mark.parametrize(
        ("model", "tags"),
        [
            ("ViT-B/16", {"laion400m_e32": False, "metaclip_400m": True, "metaclip_fullcc": True}),
            ("ViT-L/14", {"laion2b_s32b_b82k": False}),
        ],
    )
    def test_tags_in_the_hubs_cache(self, model, tags, tmp_path, monkeypatch):
        """Activation, mean and standard deviation are those of open_clip's entry."""
        name = model.replace("/", "-")
        weights = tmp_path / "made.safetensors"
        full_size(name, weights)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        grey = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
        for tag, quick_gelu in tags.items():
            names = (name, f"{name}-quickgelu")
            entry = next(filter(None, (open_clip.get_pretrained_cfg(n, tag) for n in names)))
            repository, _, file = entry["hf_hub"].rpartition("/")
            folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
            (folder / "snapshots/1").mkdir(parents=True)
            (folder / "refs").mkdir()
            (folder / "refs/main").write_text("1")
            (folder / "snapshots/1" / (file or "open_clip_model.safetensors")).symlink_to(weights)
            clip = load_clip(model, tag, device="cpu", precision="bf16")
            assert clip.quick_gelu == quick_gelu
            mean, std = torch.tensor(entry["mean"]), torch.tensor(entry["std"])
            expected = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 2, 2)
            torch.testing.assert_close(clip.normalise(grey), expected, atol=1e-5, rtol=1e-5)
            assert (clip.pixel_mean == (0.5, 0.5, 0.5)) == (tag == "laion2b_s32b_b82k")


class TestHeads:
    """No shape of the weights shows how wide the heads are."""

    @pytest.mark.parametrize("name", [n for n in plain_vits() if not n.endswith("quickgelu")])
    def test_the_config_whose_sizes_agree_gives_them(self, name):
        expected = open_clip.get_model_config(name)
        with torch.device("meta"):
            weights = open_clip.CLIP(
                expected["embed_dim"], expected["vision_cfg"], expected["text_cfg"]
            ).state_dict()
        checkpoint = Checkpoint(weights, "a file")
        for in_memory in (True, False):  # under the default name
            found, config = _config_of(checkpoint, "ViT-B-16", in_memory, None)
            assert found == name
            assert config["vision_cfg"]["head_width"] == expected["vision_cfg"].get(
                "head_width", 64
            )
            assert config["text_cfg"]["heads"] == expected["text_cfg"]["heads"]
        if name != "ViT-B-16":
            other = "ViT-B-32" if name == "ViT-L-14" else "ViT-L-14"
            with pytest.raises(SFPError, match=f"is not {other}; .* made for, {name}"):
                _config_of(checkpoint, other, False, None)

    @pytest.fixture(scope="class")
    def four_of_80(self):
        vision = dict(image_size=32, layers=1, width=320, patch_size=16, head_width=80)
        text = dict(width=64, heads=1, layers=1)
        return open_clip.CLIP(64, vision, text, quick_gelu=True).eval()

    def test_sizes_of_no_model(self, four_of_80, tmp_path):
        """4 heads of 80 could be 5 of 64."""
        weights = {k: v for k, v in four_of_80.state_dict().items() if k != "attn_mask"}
        save_file(weights, tmp_path / "any.safetensors")
        windows = torch.randn(2, 3, 32, 32)
        for given in (weights, tmp_path / "any.safetensors"):
            with pytest.raises(SFPError, match="head_width"):
                load_clip(pretrained=given, device="cpu", quick_gelu=True)
            clip = load_clip(pretrained=given, device="cpu", quick_gelu=True, head_width=80)
            with torch.no_grad():
                expected = four_of_80.encode_image(windows)
            torch.testing.assert_close(clip.encode_image(windows), expected, atol=1e-5, rtol=1e-4)

    def test_a_built_in_models_name_for_another_file(self, four_of_80, tmp_path):
        weights = {k: v for k, v in four_of_80.state_dict().items() if k != "attn_mask"}
        save_file(weights, tmp_path / "any.safetensors")
        with pytest.raises(SFPError, match=r"1 layers of 320, .* is not Toyland"):
            load_clip("Toyland", tmp_path / "any.safetensors", device="cpu")

    def test_a_file_of_128_needs_them_a_state_dict_does_not(self, weights, tmp_path):
        save_file(weights, tmp_path / "any.safetensors")
        with pytest.raises(SFPError, match="12 layers of 128, which no model of open_clip has"):
            load_clip(pretrained=tmp_path / "any.safetensors", device="cpu", quick_gelu=True)
        assert load_clip(pretrained=weights, device="cpu").trunk.heads == 2

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
    def saved(self, weights, path, **more):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, **more)
        return path

    def test_folders_and_parts_of_a_name_say_nothing(self, weights, tmp_path):
        for path in (
            "openai_exports/open_clip_model.safetensors",
            "models--timm--vit_base_patch16_clip_224.laion400m_e32/open_clip_model.safetensors",
            "my_metaclip_dfn_laion.safetensors",
        ):
            file = self.saved(weights, tmp_path / path)
            with pytest.raises(SFPError, match="quick_gelu=True or quick_gelu=False"):
                load_clip("ViT-B/16", file, **HEADS)
            for quick_gelu in (True, False):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    clip = load_clip("ViT-B/16", file, quick_gelu=quick_gelu, **HEADS)
                assert clip.quick_gelu == quick_gelu

    @pytest.mark.parametrize(
        "release",
        [
            "h14_v1.2_altogether.pt",
            "b16_400m.pt",
            "vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
            "vit_b_16-laion400m_e32-55e67d44.pt",
            "ViT-B-16.pt",
            "open_clip_model.safetensors",
            "dfn2b_s39b.safetensors",
        ],
    )
    def test_a_releases_file_name_says_nothing(self, release, weights, tmp_path):
        file = self.saved(weights, tmp_path / release)
        with pytest.raises(SFPError, match="quick_gelu=True or quick_gelu=False"):
            load_clip(pretrained=file, **HEADS)
        for quick_gelu in (True, False):
            assert (
                load_clip(pretrained=file, quick_gelu=quick_gelu, **HEADS).quick_gelu == quick_gelu
            )

    def test_the_digest_of_a_published_file_proves_it(self, weights, tmp_path, monkeypatch):
        file = self.saved(weights, tmp_path / "mine.pt")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        address = f"https://github.com/mlfoundations/open_clip/releases/x-{digest[:8]}.pt"
        entry = dict(url=address, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-16"], "made", entry)
        clip = load_clip(pretrained=file, **HEADS)
        assert not clip.quick_gelu
        assert (clip.pixel_mean, clip.pixel_std) == (entry["mean"], entry["std"])
        with pytest.raises(SFPError, match="trained with plain GELU"):
            load_clip(pretrained=file, **TINY)

    def test_a_models_name_says_it(self, weights, tmp_path):
        file = self.saved(weights, tmp_path / "mine.safetensors")
        assert load_clip("ViT-B-16-quickgelu", file, **HEADS).quick_gelu
        with pytest.raises(SFPError, match="quick_gelu=False disagrees with the model ViT-B-16-q"):
            load_clip("ViT-B-16-quickgelu", file, quick_gelu=False, **HEADS)

    @pytest.mark.parametrize("known", [True, False])
    def test_metadata_prove_it(self, known, weights, tmp_path):
        metadata = {"quick_gelu": str(known).lower()}
        file = self.saved(weights, tmp_path / "mine.safetensors", metadata=metadata)
        clip = load_clip(pretrained=file, **HEADS)
        assert clip.quick_gelu == known
        assert (clip.pixel_mean, clip.pixel_std) == (PIXEL_MEAN, PIXEL_STD)
        with pytest.raises(SFPError, match=f"quick_gelu={not known} disagrees with the weights"):
            load_clip(pretrained=file, quick_gelu=not known, **HEADS)

    def test_openais_layout_proves_it(self, weights, tmp_path):
        torch.save({**weights, **BOOKKEEPING}, tmp_path / "mine.pt")
        assert load_clip(pretrained=tmp_path / "mine.pt", device="cpu").quick_gelu
        with pytest.raises(SFPError, match="trained with QuickGELU"):
            load_clip(pretrained=tmp_path / "mine.pt", device="cpu", quick_gelu=False)

    def test_activation_matters(self, weights, embedding):
        assert not same(load_clip(pretrained=weights, device="cpu", quick_gelu=False), embedding)

    def test_a_tag_of_the_other_activation(self):
        for name, asked in (("ViT-B-16-quickgelu", None), ("ViT-B-16", True)):
            with pytest.raises(SFPError, match="plain GELU"):
                load_clip(name, "laion2b_s34b_b88k", device="cpu", quick_gelu=asked)

    @pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
    def test_openai_tags_mean_quick_gelu_whatever_the_name_says(self, name):
        for spelling in (name, f"{name}-quickgelu"):
            assert (open_clip.get_pretrained_cfg(spelling, "openai") or {"quick_gelu": True})[
                "quick_gelu"
            ]


class TestPixels:
    """Mean and deviation of the pixels: of the entry, or the user's word, or refused."""

    HALF = (0.5, 0.5, 0.5)

    def test_every_entry_gives_its_own(self):
        for name, tag in open_clip.list_pretrained():
            if name in plain_vits():
                entry = entry_of(name, tag)
                found = _normalisation(entry, name, entry["quick_gelu"], "a tag", None, None)
                assert found == (tuple(entry["mean"]), tuple(entry["std"]))

    def test_a_file_of_sizes_with_several_is_refused_without_the_users_word(self):
        ways = r"pixel_mean=\(0\.48.* or pixel_mean=\(0\.5, 0\.5, 0\.5\) with pixel_std"
        with pytest.raises(SFPError, match=ways):
            _normalisation({}, "ViT-L-14", False, "a file", None, None)
        given = _normalisation({}, "ViT-L-14", False, "a file", [0.5] * 3, [0.5] * 3)
        assert given == (self.HALF, self.HALF)

    @pytest.mark.parametrize(
        ("name", "quick_gelu"), [("ViT-L-14", True), ("ViT-B-16", False), ("ViT 1x64/8", False)]
    )
    def test_elsewhere_all_entries_agree(self, name, quick_gelu):
        usual = (PIXEL_MEAN, PIXEL_STD)
        assert _normalisation({}, name, quick_gelu, "a file", None, None) == usual

    @pytest.mark.parametrize(
        ("mean", "std", "words"),
        [
            ([0.5] * 3, None, "pixel_std is None"),
            (None, [0.5] * 3, "pixel_mean is None"),
            ([0.5] * 2, [0.5] * 3, "three numbers"),
            ([0.5] * 3, [0.5, 0, 0.5], "pixel_std is"),
            ([127.5] * 3, [0.5] * 3, "from 0 to 1"),
            ("0.5", [0.5] * 3, "pixel_mean is '0.5'"),
            ([float("nan")] * 3, [0.5] * 3, "pixel_mean is"),
        ],
    )
    def test_a_wrong_word(self, mean, std, words):
        with pytest.raises(SFPError, match=words):
            _normalisation({}, "ViT-B-16", True, "a file", mean, std)

    def test_a_word_against_the_entry(self):
        entry = entry_of("ViT-L-14", "laion2b_s32b_b82k")
        with pytest.raises(SFPError, match="disagrees with the weights a tag"):
            _normalisation(entry, "ViT-L-14", False, "a tag", PIXEL_MEAN, PIXEL_STD)

    def test_the_offline_hint_names_them(self):
        assert "pixel_mean=[0.5, 0.5, 0.5]" in offline_hint(
            entry_of("ViT-L-14", "laion2b_s32b_b82k")
        )
        assert "pixel_mean" not in offline_hint(entry_of("ViT-B-16", "openai"))

    def test_the_word_reaches_the_model(self, weights):
        clip = load_clip(
            pretrained=weights, device="cpu", pixel_mean=self.HALF, pixel_std=self.HALF
        )
        assert (clip.pixel_mean, clip.pixel_std) == (self.HALF, self.HALF)
        segmenter = sfp.Segmenter(
            "CLIP",
            pretrained=weights,
            device="cpu",
            pixel_mean=self.HALF,
            pixel_std=self.HALF,
            text_cache=False,
        )
        assert segmenter.protocol()["pixel_std"] == [0.5] * 3


class TestRefusals:
    def refused(self, match, *args, **kwargs):
        with pytest.raises(SFPError, match=match) as caught:
            load_clip(*args, device="cpu", **kwargs)
        assert "\n" not in str(caught.value)

    def test_names_and_tags(self):
        self.refused("did you mean 'ViT-B-16'", "ViT-B-17")
        self.refused("The image tower of RN50 is no plain ViT but a ResNet", "RN50")
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
        torch.save(weights, tmp_path / "any.pt")
        self.refused("12 layers of 128", "ViT-L/14", tmp_path / "any.pt")
        gone = "visual.transformer.resblocks.3.ln_1.weight"
        missing = {key: value for key, value in weights.items() if key != gone}
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
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
            archive.writestr("script/data.pkl", pickle.dumps(Bomb()))
            archive.writestr("script/constants.pkl", pickle.dumps(()))
        self.refused("weights don't need", "ViT-B/16", tmp_path / "script.pt")
        assert not (tmp_path / "ran").exists()

    def test_no_network_is_known_within_ten_seconds(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
        started = time.monotonic()
        words = r"there is no network.*ViT-B-16\.pt.*quick_gelu=True.*Toyland"
        self.refused(words, "ViT-B/16")
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
