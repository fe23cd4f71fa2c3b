"""The examples in docstrings of public names run as they stand."""

from __future__ import annotations

import doctest
import sys

import pytest

import sfp

PUBLIC = [name for name in sfp.__all__ if name != "SFPError"]
FINDER, RUNNER = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(name, capsys):
    found = getattr(sfp, name)
    module = vars(sys.modules[found.__module__])
    tests = [test for test in FINDER.find(found, name, globs=dict(module)) if test.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        assert RUNNER.run(test).failed == 0, capsys.readouterr().out
