"""The tables of README, methods.md, toyland.md and outliers.md are what the programs write from the
registries and the measured figures.
"""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN
from sfp.methods import METHODS, list_methods
from sfp.outliers import list_detectors

sys.path.append(str(ROOT / "tools/dev"))


@pytest.mark.parametrize("program", ["make_method_tables", "measure_outliers"])
def test_the_tables_are_up_to_date(program, tool, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "tools/dev")  # where a program that is started has its own
    code, _, error = tool(f"dev/{program}", "--check")
    assert code == 0, error


def test_every_measured_method_and_detector_has_a_row():
    page, figures = (ROOT / "docs/methods.md").read_text(), (ROOT / "docs/toyland.json").read_text()
    rows = [name for name in (*list_methods(), *list_detectors()) if f"\n| {name} |" in page]
    assert len(rows) >= 20 and all(name in figures for name in rows)
    assert all(METHODS.get(name).changes.paper for name in list_methods() if name in rows)


def test_figures_are_of_all_held_out_scenes_and_of_the_shipped_weights():
    figures = json.loads((ROOT / "docs/toyland.json").read_text())
    shipped = {name: load_clip(name, device="cpu").fingerprint for name in BUILT_IN}
    for key, figure in figures.items():
        assert figure["images"] == (10 if key.endswith(" on 10 scenes") else 120)
        assert figure["weights_sha256"] == shipped[key.split()[0]]


def test_what_methods_need_is_read_off_their_options():
    from make_method_tables import needs

    wanted = {
        "SFP": "",
        "Trident": "a second model",
        "CaR": "a second model",
        "FSA": "a second model",
        "CorrCLIP": "a second model, region masks",
        "LaVG": "region masks",
        "FLOSS": "a method below it (NACLIP)",
    }
    assert {name: needs(name) for name in wanted} == wanted


def test_the_effect_of_som_is_counted():
    from measure_outliers import summary

    same = (50.0, 50.0)
    costs = {"A": [(40.0, 45.0), same], "B": [(40.0, 40.02), same], "C": [(40.0, 38.0), same]}
    text = " ".join(summary(costs | {"D": [(1.0, 2.5), (50.0, 50.2)]}).split())
    assert "lifts 2 of 4 methods by 1.5 to 5.0 points, changes 1 by less than 0.05 (B)" in text
    assert "costs 1 (C 2.0)" in text and text.endswith("no figure changes by more than 0.2.")
    assert summary(costs).rstrip().endswith("no figure changes.")
