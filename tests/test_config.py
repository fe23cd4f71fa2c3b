"""A dataset's config, a method's settings, overrides: who wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from sfp.config import CONFIGS, read_config
from sfp.datasets import mmseg_datasets
from sfp.errors import SFPError
from sfp.methods import METHODS, list_methods
from sfp.pipeline import Vocabulary

DATASETS = sorted(path.stem.removeprefix("cfg_") for path in CONFIGS.glob("cfg_*.py"))


def read(dataset: str, *options: str):
    return read_config(CONFIGS / f"cfg_{dataset}.py", list(options))


def scale(cfg) -> tuple[int, int]:
    (resize,) = [step for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize"]
    return tuple(resize.scale)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", list_methods())
def test_every_method_has_settings_that_its_options_take(method, dataset):
    """Each key of the model is one of the segmentor's, or an option of the method; the names file has the right length."""
    import inspect

    from sfp.segmentor import SFPSegmentor

    assert (CONFIGS / "methods" / f"{method}.py").is_file()
    cfg = read(dataset, f"model.method={method}")
    known = set(inspect.signature(SFPSegmentor.__init__).parameters)
    options = {key: value for key, value in cfg.model.items() if key not in known and key != "type"}
    METHODS.check_options(method, options)
    assert cfg.model.method == method and cfg.dataset == dataset
    assert cfg.model.purify is (True if method in ("SFP", "SFP-release") else None)
    names = Vocabulary.from_file(cfg.model.name_path).names
    assert len(names) == {"toyland": 16, "voc20": 20, "voc21": 21, "ade20k": 150}.get(dataset, len(names))


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_every_settings_file_is_of_a_method_and_names_known_datasets(path):
    from mmengine.config import Config

    settings = Config.fromfile(path)
    assert settings.model.method == path.stem and path.stem in list_methods()
    known = [
        "toyland",
        "voc20",
        "voc21",
        "context59",
        "context60",
        "coco_object",
        "coco_stuff164k",
        "ade20k",
        "city_scapes",
        "ade847",
        "context459",
    ]
    assert set(settings.get("datasets", {})) <= set(known)


class TestThresholds:
    """methods.md 3.4, spot by spot."""

    @pytest.mark.parametrize(
        ("method", "dataset", "expected", "short_side"),
        [
            ("SCLIP", "voc21", dict(logit_scale=65, prob_thd=0.1, area_thd=0.1, window=224, stride=112), 336),
            ("SC-CLIP", "voc21", dict(logit_scale=50, prob_thd=0.15, area_thd=0.1), 336),
            ("NACLIP", "voc21", dict(logit_scale=40, prob_thd=0.1, area_thd=None, window=0, pamr_iterations=10), 336),
            ("NACLIP", "ade20k", dict(window=224, pamr_iterations=10, pamr_dilations=(8, 16)), 336),
            ("ClearCLIP", "voc21", dict(logit_scale=50, prob_thd=0.5, area_thd=None, window=448, stride=224), 448),
            ("ClearCLIP", "voc20", dict(logit_scale=50, prob_thd=0.0, window=448, stride=224), 448),
            ("ProxyCLIP", "voc21", dict(logit_scale=40, prob_thd=0.2, area_thd=None, window=336, stride=112), 336),
            ("ProxyCLIP", "ade20k", dict(window=336, stride=112), 448),
            ("SFP-release", "voc21", dict(logit_scale=50, prob_thd=0.15, area_thd=0.1), 336),
            ("SFP-release", "ade20k", dict(logit_scale=40), 384),
            ("CLIPtrase", "voc20", dict(window=0, cluster_vote="majority", class_scores=True), 224),
            ("MaskCLIP", "voc20", dict(prompts="imagenet85"), 336),
        ],
    )
    def test_values(self, method, dataset, expected, short_side):
        cfg = read(dataset, f"model.method={method}")
        # the file's own method takes no part in the composition: SFP-release is given as another method of the same config
        assert {key: cfg.model.get(key) for key in expected} == expected
        assert scale(cfg) == (2048, short_side)

    def test_vit_l_14_has_thresholds_of_its_own_in_sfps_code(self):
        assert read("voc21", "model.method=SFP-release", "model.clip=ViT-L/14").model.prob_thd == 0.2
        assert read("voc21", "model.method=SFP-release", "model.clip=ViT-L-14-quickgelu").model.prob_thd == 0.2

    def test_names_files(self):
        def query(method: str, dataset: str) -> list[str]:
            return list(Vocabulary.from_file(read(dataset, f"model.method={method}").model.name_path).queries)

        assert len(query("SCLIP", "voc20")) == 30 and len(query("SCLIP", "voc21")) == 56
        assert "person in shirt" in query("SC-CLIP", "voc21") and "people in shirt" in query("SFP-release", "voc21")
        assert query("ClearCLIP", "voc21")[0] == "background" and len(query("ClearCLIP", "voc21")) == 21
        assert len(query("ProxyCLIP", "voc21")) == 26 + 20 and "tvmonitor" in query("ProxyCLIP", "voc20")
        assert len(query("CLIPtrase", "voc21")) == 32 + 20  # 33 less the second "bed"


class TestOrder:
    def test_overrides_win_over_the_methods_settings(self):
        cfg = read("voc21", "model.method=ClearCLIP", "model.prob_thd=0.3", "short_side=400", "model.purify=True", "model.pm=SOM")
        assert (cfg.model.prob_thd, cfg.model.purify, cfg.model.pm) == (0.3, True, "SOM") and scale(cfg) == (2048, 400)

    def test_common_settings_leave_the_datasets_config(self):
        own, common = read("voc21"), read("voc21", "model.method=ClearCLIP", "settings=common")
        for key in ("window", "stride", "logit_scale", "prob_thd", "area_thd", "name_path"):
            assert common.model[key] == own.model[key]
        assert common.model.purify is None and scale(common) == (2048, 336)

    def test_the_configs_own_method_keeps_its_edits(self, tmp_path):
        (tmp_path / "cfg.py").write_text(f'_base_ = ["{CONFIGS}/cfg_voc21.py"]\nmodel = dict(purify=False)\n')
        assert read_config(tmp_path / "cfg.py", ["model.method=SFP"]).model.purify is False
        assert read_config(tmp_path / "cfg.py", ["model.method=SC-CLIP"]).model.purify is None

    def test_a_settings_file_beside_the_config_comes_first(self, tmp_path):
        (tmp_path / "methods").mkdir()
        (tmp_path / "methods/SCLIP.py").write_text('model = dict(method="SCLIP", purify=None, pm=None, logit_scale=77)\n')
        (tmp_path / "cfg.py").write_text(f'_base_ = ["{CONFIGS}/cfg_voc21.py"]\n')
        assert read_config(tmp_path / "cfg.py", ["model.method=SCLIP"]).model.logit_scale == 77

    def test_a_method_without_a_file_comes_as_published(self):
        cfg = read("voc21", "model.method=Mine")
        assert cfg.model.purify is cfg.model.pm is None and cfg.model.logit_scale == 50

    def test_the_base_config_is_sfp_with_som(self):
        assert (read("voc21").model.method, read("voc21").model.purify, read("voc21").model.pm) == ("SFP", True, "SOM")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["settings=mine"], "Unknown settings 'mine'"),
        (["short_side=0"], "no number of pixels"),
        (["short_side=many"], "no number of pixels"),
        (["model.pm"], "KEY=VALUE"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(SFPError, match=words):
        read("voc21", *options)


def test_the_folder_of_configs_is_the_repositorys():
    assert Path(ROOT) / "configs" == CONFIGS and mmseg_datasets is not None
