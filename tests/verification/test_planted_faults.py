"""``sfp verify`` names each fault that tools/dev/plant_faults.py plants, and finds none without."""

from __future__ import annotations

import runpy

import pytest
from conftest import ROOT

PROGRAM = runpy.run_path(str(ROOT / "tools/dev/plant_faults.py"))
FAULTS = PROGRAM["FAULTS"]


def test_nothing_fails_without_a_fault(tmp_path):
    assert PROGRAM["verdicts"](None, "bcd", tmp_path) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name, tmp_path):
    fault = FAULTS[name]
    method = "SFP" if name == "attention-sfp" else "ClearCLIP"
    failed = PROGRAM["verdicts"](fault, fault.steps, tmp_path, [method])
    assert any(fault.named in part["finding"]["words"] for part in failed), failed
