"""The experiment of planted outliers: its plan, its file of figures, its tables by hand, and the tool."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from conftest import ROOT

from sfp.errors import SFPError
from sfp.planting_experiment import Case, Plan, Store, miou_key
from sfp.planting_figures import tables

PLAN = Plan("unread.py", [], 2, 6, 49, [2.0, 8.0], [0.25], [0, 1], ["L2"], ["ClearCLIP", "SFP"], ["off", "undone", "SOM@all", "own"])


def test_a_plan_measures_the_clean_model_once_and_own_where_it_exists():
    keys = [miou_key(*run) for run in PLAN.runs()]
    assert len(keys) == len(set(keys)) and keys.count("ClearCLIP off clean") == 1
    # clean, and two strengths of two seeds: off and SOM@all of two methods, own of SFP alone; undone of two seeds of two methods
    assert len(keys) == 5 * 5 + 4 and not any(key.startswith("ClearCLIP own") for key in keys)
    assert keys.index("SFP own seed=0 lambda=0.25 strength=8") < keys.index("ClearCLIP off seed=1 lambda=0.25 strength=2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(images=0), "--images is 0"),
        (dict(strengths=[0.0]), "strengths above 0"),
        (dict(seeds=[1, 1]), "--seeds 1 1 names one twice"),
        (dict(seeds=[-1]), "--seeds -1 has a negative one"),
        (dict(purifiers=["SOM@nxt"]), "did you mean 'SOM@next'"),
        (dict(purifiers=["SOM:topk=2@next"]), "topk"),
        (dict(detectors=["L2:top=5"]), "did you mean 'topk'"),
        (dict(methods=["SFPP"]), "did you mean 'SFP'"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_loaded(changes, message):
    with pytest.raises(SFPError, match=message):
        replace(PLAN, **changes).check()


def test_the_tables_by_hand(tmp_path):
    """Means and sample standard deviations over two seeds; what a purifier changes is taken seed by seed."""
    store = Store(tmp_path / "results.json", dict(model="M", dataset="D", images=2, layer=6, count=49, patches=196, layers=12, options=[]))
    for seed in PLAN.seeds:
        for case in PLAN.cases(seed):
            tokens = dict(norm=[1.0] * 6, cls_attention=[0.5] * 6, patch_attention=[0.25] * 6, self_attention=[0.125] * 6)
            found = dict(precision=[0.5 + 0.02 * seed] * 6, recall=[1.0] * 6, auroc=[0.75 + 0.1 * seed] * 6)
            store.detection[case.key] = dict(tokens=tokens, L2=found)
    for method in PLAN.methods:
        for spec, clean, planted in (("off", 50.0, (40.0, 42.0)), ("SOM@all", 45.0, (44.0, 45.0)), ("own", 51.0, (41.0, 41.0))):
            store.miou[miou_key(method, spec, Case(0, 0.25, 0.0))] = clean
            for seed, value in enumerate(planted):
                store.miou[miou_key(method, spec, Case(seed, 0.25, 8.0))] = value
        for seed in PLAN.seeds:
            store.miou[f"{method} undone seed={seed}"] = 49.0
    store.miou = {key: value for key, value in store.miou.items() if not key.startswith("ClearCLIP own")}
    text = tables(PLAN, store)
    assert "M, 2 images of D; 49 of the 196 patches of each window (25.0 %) planted after layer 6; mean ± standard deviation of 2" in text
    assert "| clean | 1.0 | 0.500 | 0.250 | 0.125 |" in text
    assert "| L2 | 51 ± 1 / 100 (0.80) |" in text
    assert "| SFP | 50.0 | 49.0 | 41.0 ± 1.4 | 9.0 ± 1.4 |" in text
    assert "| SFP | 50.0 | 41.0 ± 1.4 | 45.0, 44.5 (+3.5 ± 0.7) | 51.0, 41.0 (+0.0 ± 1.4) |" in text
    assert "| ClearCLIP | 50.0 | 41.0 ± 1.4 | 45.0, 44.5 (+3.5 ± 0.7) |  |" in text


def test_a_broken_file_of_figures_is_refused(tmp_path):
    for text in ("{", "[]", '{"card": {}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(SFPError, match=r"results\.json is no results"):
            Store(tmp_path / "results.json", {})


def test_the_tool(tool, tmp_path):
    """Figures, tables and curves; the same command measures nothing again, a wider one what is missing; another experiment is refused."""
    out = tmp_path / "out"
    arguments = [ROOT / "configs/cfg_toyland.py", "--images", 2, "--detectors", "SOM", "L2", "L2:topk=5", "--strengths", 4, "--out", out]
    arguments += ["--methods", "ClearCLIP", "SC-CLIP", "--purifiers", "off", "undone", "own", "L2:topk=5@next", "--selfless", 0]
    data = ["--cfg-options", f"test_dataloader.dataset.data_root={tmp_path}/toyland", "test_dataloader.dataset.scenes=2"]
    code, output, error = tool("plant_outliers", *arguments, "--seeds", 0, *data)
    assert code == 0, error
    first = json.loads((out / "results.json").read_text())
    assert first["detection"]["seed=0 lambda=0 strength=4"]["L2"]["recall"][0] == 1.0
    assert first["detection"]["seed=0 lambda=0 strength=4"]["L2:topk=5"]["recall"][0] == 0.5
    assert len(first["miou"]) == 2 * (1 + 2 + 2) + 2 and all(0 < value < 100 for value in first["miou"].values())
    assert output.count("| ClearCLIP |") == 2 and (out / "tables.md").read_text() in output
    assert all((out / name).stat().st_size > 10000 for name in ("detection.png", "miou_lambda0.png"))
    os.utime(out / "results.json", ns=(1, 1))
    assert tool("plant_outliers", *arguments, "--seeds", 0, *data)[0] == 0 and (out / "results.json").stat().st_mtime_ns == 1
    code, output, error = tool("plant_outliers", *arguments, "--seeds", 0, 1, *data)
    assert code == 0 and "of 2 seeds" in output and " ± " in output, error
    both = json.loads((out / "results.json").read_text())
    assert {key: both["miou"][key] for key in first["miou"]} == first["miou"] and len(both["miou"]) == len(first["miou"]) + 2 * 2 + 1 + 2
    code, _, error = tool("plant_outliers", *arguments, "--count", 5, *data)
    assert code == 2 and "holds figures of other count" in error
