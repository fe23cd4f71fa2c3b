"""The ablation tables: their rows are those of the papers, their methods build, and the tool measures and prints them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from sfp.ablations import ABLATIONS, Ablation, Row, ablation_table, find_ablation, missing_rows, read_miou
from sfp.errors import SFPError
from sfp.grid import Cell
from sfp.methods import build_method
from sfp.result_table import published_rows


@pytest.mark.parametrize("name", [name for name, ablation in ABLATIONS.items() if ablation.table])
def test_rows_are_those_of_the_paper(name):
    ablation = ABLATIONS[name]
    published = {r["method"] for r in published_rows() if (r["paper"], r["table"]) == (ablation.paper, ablation.table)}
    assert {row.name for row in ablation.rows} == published
    for backbone in ablation.backbones:
        dataset = "ade20k" if ablation.paper != "SC-CLIP" else "voc21"
        assert all(ablation.published(row, backbone, dataset) is not None for row in ablation.rows)
    assert all(ablation.published(row, "Toyland", "toyland") is not None for row in ablation.rows)


def test_every_method_of_every_table_builds(toyland_clip):
    for method in {method for ablation in ABLATIONS.values() for method in ablation.methods}:
        cfg = Cell(method, "Toyland", "toyland", (), "unused").config()
        options = (
            "window",
            "stride",
            "logit_scale",
            "prob_thd",
            "area_thd",
            "type",
            "clip",
            "pretrained",
            "method",
            "name_path",
            "precision",
        )
        own = {k: v for k, v in cfg.model.items() if k not in (*options, "windows_at_once", "data_preprocessor")}
        assert build_method(cfg.model.method, toyland_clip, **own).name == method.split(":")[0]
    assert all(bool(row.missing) == (row.method is None) for ablation in ABLATIONS.values() for row in ablation.rows)


def test_the_table_by_hand():
    rows = (Row("baseline (ClearCLIP)", "A"), Row("baseline+SOM", None, "no such option"), Row("baseline+SOM+SAE", "B"))
    ablation = Ablation("modules", "SFP", "Tab2", rows, {"ViT-B/16": "ViT-B/16"})
    measured = {("A", "ViT-B/16", "ade20k"): 16.0, ("B", "ViT-B/16", "ade20k"): 15.0}
    lines = ablation_table(ablation, "ViT-B/16", ["ade20k"], measured).splitlines()
    assert lines[0] == "| row | method | ade20k | change | paper | change |"
    assert lines[2:] == [
        "| baseline (ClearCLIP) | `A` | 16.0 |  | 16.7 |  |",
        "| baseline+SOM | no option |  |  | 18.2 | +1.5 |",
        "| baseline+SOM+SAE | `B` | 15.0 | -1.0 | 19.5 | +2.8 |",
    ]
    assert missing_rows(ablation) == "- Not measured: baseline+SOM: no such option.\n"


def test_clipseg_without_g_is_its_attention_without_g(toyland_clip):
    """epsilon=0 of Table 4's third row: R vanishes."""
    import torch

    similarity = torch.rand(1, 1, 9, 9)
    assert not build_method("CLIPSeg", toyland_clip, attention_layer=10, epsilon=0.0).reachability(similarity).any()


def test_the_tool(tmp_path):
    command = [sys.executable, str(ROOT / "tools/ablate.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SFP_DATA": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    done = run("sc-clip-table8", "sc-clip-table3", "--save", "tables.md", "--cfg-options", "test_dataloader.dataset.scenes=2")
    assert done.returncode == 0, done.stderr[-2000:]
    miou = read_miou(Cell("SC-CLIP", "Toyland", "toyland", (), str(tmp_path / "work_dirs/ablations/own")).folder)
    assert f"| K-K | `SC-CLIP` | {miou:.1f} |  | 41.2 |  |" in done.stdout and "| Q-Q | no option |  |  | 40.9 | -0.3 |" in done.stdout
    assert "| resolve 15 anomaly tokens | no option |" in done.stdout and (tmp_path / "tables.md").read_text() in done.stdout + "\n"
    assert "sfp-questions" in run("--list").stdout
    done = run("sfp-tabel2")
    assert done.returncode == 2 and "did you mean 'sfp-table2'" in done.stderr


def test_mistakes(tmp_path):
    with pytest.raises(SFPError, match="did you mean 'clipseg-table4'"):
        find_ablation("clipsg-table4")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SFPError, match="measure it again"):
        read_miou(tmp_path)
    assert read_miou(tmp_path / "none") is None
