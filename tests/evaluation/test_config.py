"""A dataset's config, a method's settings, overrides: who wins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sfp.datasets import mmseg_datasets
from sfp.errors import SFPError
from sfp.evaluation import provenance
from sfp.evaluation.config import (
    CONFIGS,
    dataset_options,
    method_options,
    read_config,
    read_protocol,
)
from sfp.methods import build_method, check_method, list_methods
from sfp.pipeline import Vocabulary

DATASETS = sorted(path.stem.removeprefix("cfg_") for path in CONFIGS.glob("cfg_*.py"))
CLASSES = dict(
    toyland=16, voc20=20, voc21=21, context59=59, context60=60, coco_object=81, coco_stuff164k=171,
    ade20k=150, city_scapes=19,
    ade847=847, context459=459,
)  # fmt: skip


def read(dataset: str, *options: str):
    return read_config(CONFIGS / f"cfg_{dataset}.py", list(options))


def scale(cfg) -> tuple[int, int]:
    (resize,) = [step for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize"]
    return tuple(resize.scale)


def vocabulary(cfg) -> Vocabulary:
    return Vocabulary.from_file(cfg.model.name_path, cfg.model.get("name_separator", ", "))


def test_the_ten_datasets_and_toyland():
    assert sorted(CLASSES) == DATASETS


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", list_methods())
def test_every_method_has_settings_that_its_options_take(method, dataset):
    """Each key of the model is one of the segmentor's, of the protocol's, or an option of the
    method.
    """
    cfg = read(dataset, f"model.method={method}")
    check_method(method, method_options(cfg.model))
    read_protocol(cfg.model)
    assert cfg.model.method == method and cfg.dataset == dataset
    assert cfg.model.purify is (True if method in ("SFP", "SFP-release") else None)
    assert len(vocabulary(cfg).names) == CLASSES[dataset]


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "methods").glob("*.py")), ids=lambda path: path.stem
)
def test_every_settings_file_is_of_a_method_and_names_known_datasets(path):
    from mmengine.config import Config

    settings = Config.fromfile(path)
    assert settings.model.method == path.stem and path.stem in list_methods()
    assert set(settings.get("datasets", {})) <= set(CLASSES)


def _redrawn(threshold: float) -> list[dict]:
    return [dict(type="SAM", coarse_thresh=threshold)]


class TestThresholds:
    """Those of the methods' repositories, spot by spot."""

    @pytest.mark.parametrize(
        ("method", "dataset", "expected", "short_side"),
        [
            (
                "SCLIP",
                "voc21",
                dict(logit_scale=65, prob_thd=0.1, area_thd=0.1, window=224, stride=112),
                336,
            ),
            ("SC-CLIP", "voc21", dict(logit_scale=50, prob_thd=0.15, area_thd=0.1), 336),
            (
                "NACLIP",
                "voc21",
                dict(logit_scale=40, prob_thd=0.1, area_thd=None, window=0, pamr_iterations=10),
                336,
            ),
            ("NACLIP", "ade20k", dict(window=224, pamr_iterations=10, pamr_dilations=(8, 16)), 336),
            (
                "ClearCLIP",
                "voc21",
                dict(logit_scale=50, prob_thd=0.5, area_thd=None, window=448, stride=224),
                448,
            ),
            ("ClearCLIP", "voc20", dict(logit_scale=50, prob_thd=0.0, window=448, stride=224), 448),
            (
                "ProxyCLIP",
                "voc21",
                dict(logit_scale=40, prob_thd=0.2, area_thd=None, window=336, stride=112),
                336,
            ),
            ("ProxyCLIP", "ade20k", dict(window=336, stride=112), 448),
            ("SCLIP", "context60", dict(logit_scale=50, prob_thd=0.1, area_thd=None), 336),
            (
                "SCLIP",
                "coco_object",
                dict(logit_scale=50, prob_thd=0.1, window=224, stride=112),
                336,
            ),
            ("SCLIP", "coco_stuff164k", dict(logit_scale=40, prob_thd=0.0), 448),
            (
                "SCLIP",
                "city_scapes",
                dict(logit_scale=40, prob_thd=0.0, window=224, stride=112),
                560,
            ),
            ("SC-CLIP", "context60", dict(logit_scale=40, prob_thd=0.15), 336),
            ("SC-CLIP", "coco_object", dict(logit_scale=55, prob_thd=0.35), 336),
            ("SC-CLIP", "coco_stuff164k", dict(logit_scale=40, prob_thd=0.0), 336),
            ("SC-CLIP", "city_scapes", dict(window=224, stride=112), 560),
            ("NACLIP", "context59", dict(window=224, pamr_iterations=10), 336),
            ("NACLIP", "context60", dict(logit_scale=40, prob_thd=0.1, pamr_iterations=10), 336),
            ("NACLIP", "coco_object", dict(logit_scale=40, prob_thd=0.1), 336),
            ("NACLIP", "city_scapes", dict(window=224, pamr_iterations=10), 560),
            (
                "ClearCLIP",
                "context59",
                dict(logit_scale=50, prob_thd=0.0, window=448, stride=224),
                448,
            ),
            ("ClearCLIP", "context60", dict(logit_scale=50, prob_thd=0.15), 448),
            (
                "ClearCLIP",
                "coco_object",
                dict(logit_scale=50, prob_thd=0.4, window=448, stride=224),
                448,
            ),
            ("ClearCLIP", "coco_stuff164k", dict(logit_scale=50, window=448), 448),
            ("ClearCLIP", "city_scapes", dict(logit_scale=50, window=224, stride=224), 448),
            (
                "ProxyCLIP",
                "context60",
                dict(logit_scale=40, prob_thd=0.15, window=336, stride=112),
                336,
            ),
            ("ProxyCLIP", "coco_object", dict(logit_scale=40, prob_thd=0.25, window=336), 336),
            ("ProxyCLIP", "city_scapes", dict(window=224, stride=112), 448),
            ("ProxyCLIP", "ade847", dict(window=336, stride=112, name_separator="; "), 448),
            ("ProxyCLIP", "context459", dict(window=336, stride=112), 448),
            (
                "SFP-release",
                "context59",
                dict(logit_scale=40, prob_thd=0.0, window=224, stride=112),
                336,
            ),
            ("SFP-release", "context60", dict(logit_scale=40, prob_thd=0.15, area_thd=None), 336),
            ("SFP-release", "coco_object", dict(logit_scale=55, prob_thd=0.35), 336),
            ("SFP-release", "coco_stuff164k", dict(logit_scale=40, prob_thd=0.0), 336),
            (
                "SFP-release",
                "city_scapes",
                dict(logit_scale=40, prob_thd=0.0, window=224, stride=112),
                560,
            ),
            ("SFP", "city_scapes", dict(method="SFP", purify=True), 560),
            (
                "RF-CLIP",
                "voc21",
                dict(window=0, logit_scale=40, prob_thd=0.1, area_thd=None, image_weight=0.1),
                336,
            ),
            (
                "RF-CLIP",
                "city_scapes",
                dict(class_vector="window", cluster_distance=0.14, window=224, stride=112),
                560,
            ),
            ("RF-CLIP", "ade20k", dict(image_weight=0.3, patch_weight=0.05), 336),
            (
                "PEARL",
                "city_scapes",
                dict(alpha_kk=0.3, refine=[dict(type="TLP", grid=224)], window=224),
                560,
            ),
            (
                "PEARL",
                "voc21",
                dict(window=0, prob_thd=0.1, area_thd=None, refine=[dict(type="TLP", grid=80)]),
                336,
            ),
            (
                "ResCLIP",
                "voc20",
                dict(window=0, temp_thd=0.1, rcs_mix=(2.0, 0.6), sfr_mix=(2.1, 0.6)),
                336,
            ),
            (
                "ResCLIP",
                "coco_object",
                dict(window=224, prob_thd=0.1, logit_scale=40, temp_thd=0.11),
                336,
            ),
            ("DIH-CLIP", "voc21", dict(logit_scale=50, prob_thd=0.15, area_thd=0.1), 336),
            ("FSA", "coco_object", dict(window=336, prob_thd=0.3, logit_scale=40), 336),
            ("FSA", "city_scapes", dict(window=224, stride=80), 448),
            ("CLIP", "context60", dict(logit_scale=40, prob_thd=0.05), 336),
            ("CLIP", "coco_object", dict(logit_scale=40, prob_thd=0.1), 336),
            (
                "CLIPtrase",
                "coco_object",
                dict(window=0, cluster_vote="majority", logit_scale=40, prob_thd=0.0),
                224,
            ),
            ("MaskCLIP", "context459", dict(prompts="imagenet85"), 336),
            ("SFP-release", "voc21", dict(logit_scale=50, prob_thd=0.15, area_thd=0.1), 336),
            ("SFP-release", "ade20k", dict(logit_scale=40), 384),
            ("CLIPtrase", "voc20", dict(window=0, cluster_vote="majority", class_scores=True), 224),
            ("MaskCLIP", "voc20", dict(prompts="imagenet85"), 336),
            (
                "Trident",
                "voc20",
                dict(window=336, stride=112, kappa=0.0, refine=_redrawn(0.2), prob_thd=0.0),
                336,
            ),
            (
                "Trident",
                "voc21",
                dict(window=336, stride=224, prob_thd=0.2, area_thd=None, refine=_redrawn(0.2)),
                448,
            ),
            ("Trident", "context60", dict(prob_thd=0.15, refine=_redrawn(0.15)), 576),
            ("Trident", "context59", dict(prob_thd=0.0, refine=_redrawn(0.15)), 576),
            ("Trident", "coco_object", dict(prob_thd=0.25, refine=_redrawn(0.25)), 448),
            ("Trident", "coco_stuff164k", dict(stride=224, refine=_redrawn(0.05)), 448),
            ("Trident", "ade20k", dict(refine_neg_cos=False, refine=_redrawn(0.05)), 576),
            (
                "Trident",
                "city_scapes",
                dict(kappa=3.0, refine_neg_cos=False, sam_halves=True, refine=_redrawn(0.1)),
                688,
            ),
            ("Trident", "ade847", dict(window=336, refine=_redrawn(0.2)), 448),
            ("Trident", "context459", dict(stride=224, refine=_redrawn(0.2)), 448),
            ("Trident", "toyland", dict(proxy="colour", sam="colour", window=224), 336),
        ],
    )
    def test_values(self, method, dataset, expected, short_side):
        cfg = read(dataset, f"model.method={method}")
        # the file's own method takes no part in the composition: SFP-release is given as another
        # method of the same config
        assert {key: cfg.model.get(key) for key in expected} == expected
        assert scale(cfg) == (2048, short_side)

    def test_vit_l_14_has_thresholds_of_its_own_in_sfps_code(self):
        assert (
            read("voc21", "model.method=SFP-release", "model.clip=ViT-L/14").model.prob_thd == 0.2
        )
        assert (
            read(
                "voc21", "model.method=SFP-release", "model.clip=ViT-L-14-quickgelu"
            ).model.prob_thd
            == 0.2
        )
        assert (
            read("coco_object", "model.method=SFP-release", "model.clip=ViT-L/14").model.prob_thd
            == 0.25
        )

    def test_names_files(self):
        def query(method: str, dataset: str) -> list[str]:
            return list(vocabulary(read(dataset, f"model.method={method}")).queries)

        assert len(query("SCLIP", "voc20")) == 30 and len(query("SCLIP", "voc21")) == 56
        assert "person in shirt" in query("SC-CLIP", "voc21") and "people in shirt" in query(
            "SFP-release", "voc21"
        )
        assert (
            query("ClearCLIP", "voc21")[0] == "background"
            and len(query("ClearCLIP", "voc21")) == 21
        )
        assert len(query("ProxyCLIP", "voc21")) == 26 + 20 and "tvmonitor" in query(
            "ProxyCLIP", "voc20"
        )
        assert len(query("CLIPtrase", "voc21")) == 32 + 20  # 33 less the second "bed"
        for method in ("SCLIP", "NACLIP", "SC-CLIP", "SFP", "SFP-release"):
            assert len(query(method, "coco_object")) == 113 and "people" not in query(
                method, "coco_object"
            )
        assert (
            len(query("ProxyCLIP", "coco_object")) == len(query("CLIP", "coco_object")) == 17 + 80
        )
        assert (
            query("ClearCLIP", "coco_object")[:2] == ["background", "person"]
            and len(query("ClearCLIP", "coco_object")) == 81
        )
        assert len(query("CLIPtrase", "coco_object")) == 107 + 80
        for method in set(list_methods()) - {"CLIPtrase", "CaR"}:  # without settings for Cityscapes
            assert query(method, "city_scapes")[11] == (
                "people" if method.startswith("SFP") else "person"
            )
        assert query("SFP", "city_scapes")[6:8] == ["trafficlight", "trafficsign"]
        assert (
            query("SFP", "coco_stuff164k")[9] == "trafficlight"
            and query("CLIPtrase", "coco_stuff164k")[9] == "traffic light"
        )
        assert (
            query("SFP", "ade20k")[44] == "chestofdrawers"
            and query("CLIPtrase", "ade20k")[44] == "chest of drawers"
        )
        assert query("SFP", "context60")[0] == "background" and query("SFP", "context60")[
            1:
        ] == query("SFP", "context59")
        assert "table" in query("SFP", "context59") and "diningtable" in query(
            "CLIPtrase", "context59"
        )
        assert query("SFP", "context459")[430] == "unknown"
        assert (
            len(query("SFP", "ade847")) == 847 and query("SFP", "ade847")[1] == "building, edifice"
        )


class TestOrder:
    def test_overrides_win_over_the_methods_settings(self):
        cfg = read(
            "voc21",
            "model.method=ClearCLIP",
            "model.prob_thd=0.3",
            "short_side=400",
            "model.purify=True",
            "model.pm=SOM",
        )
        assert (cfg.model.prob_thd, cfg.model.purify, cfg.model.pm) == (0.3, True, "SOM") and scale(
            cfg
        ) == (2048, 400)

    def test_common_settings_leave_the_datasets_config(self):
        own, common = read("voc21"), read("voc21", "model.method=ClearCLIP", "settings=common")
        for key in ("window", "stride", "logit_scale", "prob_thd", "area_thd", "name_path"):
            assert common.model[key] == own.model[key]
        assert common.model.purify is None and scale(common) == (2048, 336)

    @pytest.mark.parametrize("dataset", DATASETS)
    @pytest.mark.parametrize("method", ["SFP", "CLIPtrase", "ProxyCLIP"])
    def test_tcl_is_the_common_protocol_in_tcls_sizes(self, method, dataset):
        tcl, common = (
            read(dataset, f"model.method={method}", f"settings={settings}")
            for settings in ("tcl", "common")
        )
        assert scale(tcl) == (2048, 448) and (tcl.model.window, tcl.model.stride) == (448, 224)
        sizes = dict(window=448, stride=224)
        assert {**common.model, **sizes} == dict(tcl.model)

    def test_overrides_win_over_tcl(self):
        cfg = read("voc21", "settings=tcl", "model.stride=112", "short_side=336")
        assert (cfg.model.window, cfg.model.stride) == (448, 112) and scale(cfg) == (2048, 336)

    def test_the_configs_own_method_keeps_its_edits(self, tmp_path):
        (tmp_path / "cfg.py").write_text(
            f'_base_ = ["{CONFIGS}/cfg_voc21.py"]\nmodel = dict(purify=False)\n'
        )
        assert read_config(tmp_path / "cfg.py", ["model.method=SFP"]).model.purify is False
        assert read_config(tmp_path / "cfg.py", ["model.method=SC-CLIP"]).model.purify is None

    def test_a_settings_file_beside_the_config_comes_first(self, tmp_path):
        (tmp_path / "methods").mkdir()
        (tmp_path / "methods/SCLIP.py").write_text(
            'model = dict(method="SCLIP", purify=None, pm=None, logit_scale=77)\n'
        )
        (tmp_path / "cfg.py").write_text(f'_base_ = ["{CONFIGS}/cfg_voc21.py"]\n')
        assert read_config(tmp_path / "cfg.py", ["model.method=SCLIP"]).model.logit_scale == 77

    def test_a_method_without_a_file_comes_as_published(self):
        cfg = read("voc21", "model.method=Mine")
        assert cfg.model.purify is cfg.model.pm is None and cfg.model.logit_scale == 50

    def test_the_base_config_is_sfp_with_som(self):
        assert (read("voc21").model.method, read("voc21").model.purify, read("voc21").model.pm) == (
            "SFP",
            True,
            "SOM",
        )


def test_the_folder_of_configs_is_the_repositorys():
    assert Path(ROOT) / "configs" == CONFIGS and mmseg_datasets is not None


class TestFilesThatRunCode:
    """mmengine reads YAML so that it runs what a file names; a Python config is a program."""

    EVIL = "model: !!python/object/apply:os.mkdir ['{ran}']\n"

    @pytest.mark.parametrize(
        "name", ["evil.yaml", "evil.yml", "evil.YAML", "evil.json", "evil.txt", "evil.py.yaml"]
    )
    @pytest.mark.parametrize("where", ["itself", "base", "list of bases", "base of the base"])
    def test_yaml_and_json_are_refused(self, name, where, tmp_path):
        ran, evil = tmp_path / "ran", tmp_path / name
        evil.write_text(self.EVIL.format(ran=ran))
        config, text = tmp_path / "cfg_mine.py", f"_base_ = '{name}'"
        if where == "list of bases":
            text = f"_base_ = ['{CONFIGS}/base_config.py', '{name}']"
        if where == "base of the base":
            (tmp_path / "between.py").write_text(text)
            text = "_base_ = './between.py'"
        config.write_text(text)
        with pytest.raises(SFPError, match=rf"{name} is no Python file; write it like"):
            read_config(evil if where == "itself" else config, [])
        assert not ran.exists()

    @pytest.mark.parametrize("program", ["test", "probe_layers", "compare_names"])
    def test_in_every_program_that_takes_a_config(self, program, tmp_path, tool):
        (tmp_path / "evil.yaml").write_text(self.EVIL.format(ran=tmp_path / "ran"))
        (tmp_path / "cfg_mine.py").write_text("_base_ = 'evil.yaml'")
        for config in ("evil.yaml", "cfg_mine.py"):
            code, _, error = tool(program, tmp_path / config)
            assert code == 2 and "evil.yaml is no Python file" in error
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["test_cfg", "val_cfg"])
def test_mmengines_own_precision_is_refused(key, tmp_path):
    base = f"_base_ = ['{CONFIGS}/cfg_toyland.py']\n"
    (tmp_path / "cfg_mine.py").write_text(f"{base}{key} = dict(type='TestLoop', fp16=True)\n")
    with pytest.raises(SFPError, match=rf"sets {key}.fp16; set model.precision='fp16'"):
        read_config(tmp_path / "cfg_mine.py", [])
    (tmp_path / "cfg_mine.py").write_text(f"{base}{key} = dict(type='TestLoop', fp16=False)\n")
    read_config(tmp_path / "cfg_mine.py", [])


class TestOptionsOfADataset:
    """What a method's authors chose for a dataset is no changed option there."""

    def changed(self, clip, *options: str) -> dict:
        cfg = read("voc21", "model.method=ResCLIP", *options)
        method = build_method("ResCLIP", clip, **method_options(cfg.model))
        return provenance._changed_options(method, dataset_options(cfg))

    def test_as_published(self, clip):
        assert dataset_options(read("voc21", "model.method=ResCLIP"))["temp_thd"] == 0.5
        assert self.changed(clip) == {}

    def test_another_value_is_changed_also_where_it_is_the_default(self, clip):
        assert self.changed(clip, "model.temp_thd=0.25") == dict(temp_thd=0.25)
        assert self.changed(clip, "model.base=SCLIP") == dict(base="SCLIP")

    def test_common_settings_have_none(self, clip):
        assert dataset_options(read("voc21", "model.method=ResCLIP", "settings=common")) == {}
        assert self.changed(clip, "settings=tcl") == {}


def test_a_wrappers_code_holds_its_bases():
    alone, wrapped = (
        provenance.code_fingerprint(*provenance._classes("FSA", options))
        for options in (dict(base="NACLIP"), dict(base="ProxyCLIP:proxy=colour"))
    )
    assert alone != wrapped
    assert len(provenance._classes("CLIP", {})) == 1


def test_modules_of_a_config_lie_in_the_working_folder(tmp_path, monkeypatch):
    """As with python -m: the script ``sfp`` has its own folder on the path instead."""
    base = str(CONFIGS / "cfg_toyland.py")
    for name in ("own_module_here", "own_module_lost"):
        (tmp_path / f"cfg_{name}.py").write_text(
            f"_base_ = [{base!r}]\n"
            f"custom_imports = dict(imports=['sfp', {name!r}], allow_failed_imports=False)\n"
        )
    (tmp_path / "own_module_here.py").write_text("FOUND = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    read_config("cfg_own_module_here.py", [])
    assert sys.modules.pop("own_module_here").FOUND
    with pytest.raises(SFPError, match=r"\(ModuleNotFoundError: No module named 'own_module_lost'"):
        read_config("cfg_own_module_lost.py", [])
