"""Options as people type them."""

from __future__ import annotations

import argparse

import pytest

from sfp.errors import SFPError
from sfp.options import HelpFormatter, parse_options, parse_spec, split_spec


def test_literals_become_values_and_the_rest_text():
    given = parse_options(
        ["sigma=3.5", "purify=False", "proxy=colour", "layers=[4, 10]", "path=a=b"], "--options"
    )
    assert given == dict(sigma=3.5, purify=False, proxy="colour", layers=[4, 10], path="a=b")


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_one_grammar_for_options_and_configs(text):
    """--options of a program and --cfg-options read KEY=VALUE alike."""
    from sfp.evaluation.config import CONFIGS, read_config

    pairs = [f"model.purify={text}", "model.pm=None", "model.sigma=3", "model.layers=[4,10]"]
    pairs += ["model.dilations=8,16", "model.proxy=colour"]
    cfg = read_config(CONFIGS / "cfg_toyland.py", pairs)
    for key, value in parse_options(pairs, "--options").items():
        found = cfg.model[key.removeprefix("model.")]
        assert found == value and type(found) is type(value)
    assert cfg.model.purify is True and cfg.model.pm is None


def test_a_spec_keeps_commas_inside_values():
    assert parse_spec("SC-CLIP:fuse_layers=[4,10],pm=L2") == (
        "SC-CLIP",
        dict(fuse_layers=[4, 10], pm="L2"),
    )
    assert split_spec("SFP") == ("SFP", [])


@pytest.mark.parametrize("pair", ["sigma", "=3", ""])
def test_a_pair_without_key_or_value(pair):
    with pytest.raises(SFPError, match=r"--options got .*KEY=VALUE"):
        parse_options([pair], "--options")


def test_help_shows_defaults_that_say_something():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--number", default=0, help="a")
    parser.add_argument("--names", nargs="+", default=["SFP", "50%"], help="b")
    parser.add_argument("--nothing", help="c")
    parser.add_argument("--empty", nargs="+", default=[], help="d")
    parser.add_argument("--switch", action="store_true", help="e")
    words = " ".join(parser.format_help().split())
    assert "a (default: 0)" in words and "b (default: SFP 50%)" in words
    assert words.count("default") == 2
