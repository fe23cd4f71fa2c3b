"""The ablation tables: the papers' rows, methods that build, and the tool's output."""

from __future__ import annotations

import parity
import pytest
import torch
from conftest import ROOT

from sfp.errors import SFPError
from sfp.evaluation.config import method_options
from sfp.evaluation.grid import Cell
from sfp.evaluation.published import published_rows
from sfp.experiments.ablations import (
    ABLATIONS,
    Ablation,
    Row,
    ablation_table,
    equal_signs,
    find_ablation,
    missing_rows,
    read_miou,
)
from sfp.methods import build_method
from sfp.options import parse_spec
from sfp.outliers import build_detector
from sfp.page.backend import TOYLAND_OPTIONS


@pytest.mark.parametrize("name", [name for name, ablation in ABLATIONS.items() if ablation.table])
def test_rows_are_those_of_the_paper(name):
    ablation = ABLATIONS[name]
    published = {
        r["method"]
        for r in published_rows()
        if (r["paper"], r["table"]) == (ablation.paper, ablation.table)
    }
    assert {row.name for row in ablation.rows} == published
    for backbone in ablation.backbones:
        dataset = "ade20k" if ablation.paper != "SC-CLIP" else "voc21"
        assert all(ablation.published(row, backbone, dataset) is not None for row in ablation.rows)
    assert all(ablation.published(row, "Toyland", "toyland") is not None for row in ablation.rows)


def test_every_method_of_every_table_builds(toyland_clip):
    for method in {
        method for ablation in ABLATIONS.values() for method in ablation.methods("toyland")
    }:
        name, options = parse_spec(method)
        options.update(TOYLAND_OPTIONS.get(name, {}))
        assert build_method(name, toyland_clip, **options).name == name
    for ablation in ABLATIONS.values():
        for row in ablation.rows:
            assert bool(row.missing) == (row.method is None)
            if (
                row.toyland
            ):  # what stands in for weights that must be downloaded; all else is the same
                assert (
                    row.toyland.replace("=colour", "=vit_base_patch16_224.dino")
                    == row.method
                    == row.method_on("voc21")
                )


def test_each_answer_about_sae_and_hai_has_features_of_its_own(clip):
    """None is the default by another name, such as LN2 before an FFN that is not there."""
    windows = torch.cat([parity.case_image(f"vit12/{name}") for name in ("win0", "win1")])
    found = {}
    for method in ABLATIONS["sfp-questions"].methods("toyland"):
        name, options = parse_spec(method)
        if all(option.startswith(("sae_", "hai")) for option in options):
            features = build_method(name, clip, **options)(windows)
            assert not any(torch.equal(features, other) for other in found.values()), method
            found[method] = features
    assert "SFP" in found and len(found) >= 14


def test_the_shares_of_table_3_flag_as_many_tokens():
    state = type("State", (), dict(patches=torch.randn(3, 196, 8)))
    shares = [
        float(row.method.split("contamination=")[1])
        for row in ABLATIONS["sc-clip-table3"].rows
        if "contamination" in row.method
    ]
    counts = [
        build_detector("LOF", contamination=share)(state)[0].sum(1).tolist() for share in shares
    ]
    assert (
        counts == [[n] * 3 for n in (1, 3, 5, 15)]
        and build_detector("LOF")(state)[0].sum(1).tolist() == [10] * 3
    )


def test_the_table_by_hand():
    rows = (
        Row("baseline (ClearCLIP)", "A"),
        Row("baseline+SOM", None, "no such option"),
        Row("baseline+SOM+SAE", "B"),
    )
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
    similarity = torch.rand(1, 1, 9, 9)
    assert (
        not build_method("CLIPSeg", toyland_clip, attention_layer=10, epsilon=0.0)
        .reachability(similarity)
        .any()
    )


def test_lists_of_layers_pass_through_the_grid():
    for method in (
        "SC-CLIP-ablation:fusion=sum,fuse_layers=[[5,5],[9,9]]",
        "SC-CLIP-ablation:aggregation=none,fuse_layers=[]",
    ):
        found = method_options(Cell(method, "Toyland", "toyland", (), "unused").config().model)
        assert {key: found[key] for key in parse_spec(method)[1]} == parse_spec(method)[1]


# over 5 s: the program starts the grid's worker, a fresh interpreter
def test_the_tool(tool, monkeypatch, tmp_path):
    """A row is measured through the grid; one without an option is named."""
    rows = (
        Row("Q-Q", "SC-CLIP-ablation:correlation=q,fuse_layers=[[5,5],[9,9]]"),
        Row("K-K", None, "it is left out here"),
    )
    monkeypatch.setitem(
        ABLATIONS, "tiny", Ablation("two rows", "SC-CLIP", "Tab8", rows, {"ViT-B/16": "ViT-B/16"})
    )
    for key, value in dict(PYTHONPATH=ROOT, OMP_NUM_THREADS=1, SFP_DATA=tmp_path).items():
        monkeypatch.setenv(key, str(value))
    cell = Cell(rows[0].method, "Toyland", "toyland", (), str(tmp_path / "out/own"))
    arguments = [
        "tiny",
        "--out",
        tmp_path / "out",
        "--save",
        tmp_path / "tables.md",
        "--cfg-options",
        "test_dataloader.dataset.scenes=1",
    ]
    code, output, error = tool("ablate", *arguments)
    assert code == 0, error
    assert f"| Q-Q | `{rows[0].method}` | {read_miou(cell.folder):.1f} |  | 40.9 |  |" in output
    assert (
        "| K-K | no option |  |  | 41.2 | +0.3 |" in output
        and "- Not measured: K-K: it is left out here." in output
    )
    head, tables = (tmp_path / "tables.md").read_text().split("\n```\n\n")
    assert "python tools/ablate.py tiny --datasets toyland" in head and tables in output
    assert "sfp-questions" in tool("ablate", "--list")[1]
    code, _, error = tool("ablate", "sfp-tabel2")
    assert code == 2 and "did you mean 'sfp-table2'" in error


def test_mistakes(tmp_path):
    with pytest.raises(SFPError, match="did you mean 'clipseg-table4'"):
        find_ablation("clipsg-table4")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SFPError, match="measure it again"):
        read_miou(tmp_path)
    assert read_miou(tmp_path / "none") is None


def test_signs_are_counted_where_the_paper_has_a_change():
    """SFP's Table 3 falls from row to row; measured here, one row rises and one is missing."""
    ablation = ABLATIONS["sfp-table3"]
    values = [50.0, 49.0, 51.0, None, 48.0]
    measured = {
        (row.method, "Toyland", "toyland"): value
        for row, value in zip(ablation.rows, values, strict=True)
    }
    assert equal_signs(ablation, "Toyland", "toyland", measured) == (2, 3)
    assert equal_signs(ABLATIONS["sfp-questions"], "Toyland", "toyland", measured) == (0, 0)
