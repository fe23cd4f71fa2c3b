"""docs/methods.md and the README's table are what the program writes from the registries and the
measured figures.
"""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from sfp.clip import load_clip
from sfp.clip.loading import BUILT_IN
from sfp.methods import METHODS, list_methods
from sfp.outliers import list_detectors


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
