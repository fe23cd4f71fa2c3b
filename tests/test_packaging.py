"""setup.py, constraints.txt and environment.yml agree; the shipped weights are sound."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from importlib.metadata import version

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from sfp.clip.built_in import BUILT_IN
from sfp.clip.published import entry_of, hub_names

PINS: dict[str, list[Requirement]] = {}  # one for each marker
for line in (ROOT / "constraints.txt").read_text().splitlines():
    if line and not line.startswith("#"):
        PINS.setdefault(Requirement(line).name.lower().replace("_", "-"), []).append(
            Requirement(line)
        )


def setup_requirements() -> list[Requirement]:
    """Every string in setup.py's lists that is a requirement."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.List)]
    texts = [
        e.value
        for node in lists
        for e in node.elts
        if isinstance(e, ast.Constant) and isinstance(e.value, str)
    ]
    return [Requirement(text) for text in texts if re.search(r"[<>=]", text)]


@pytest.mark.parametrize("requirement", setup_requirements(), ids=str)
def test_the_pinned_version_is_in_setups_range(requirement):
    for pin in PINS[requirement.name.lower().replace("_", "-")]:
        (only,) = pin.specifier
        assert only.operator == "==" and Version(only.version) in requirement.specifier


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_has_one_pin_for_each_package(python):
    for pins in PINS.values():
        assert (
            sum(
                pin.marker is None or pin.marker.evaluate({"python_version": python})
                for pin in pins
            )
            == 1
        )


def test_torch_and_torchvision_are_pinned_together():
    assert {"torch", "torchvision"} <= set(PINS)


def test_environment_yml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "sfp" and environment["channels"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert Requirement(plain[0].replace("=", "==")).name == "python" and "pip" in plain
    assert pip == [
        "-c constraints.txt",
        "-e .[dev]",
    ]  # so it installs what setup.py says under the pins
    assert "dev" in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_shipped_weights(name):
    file = BUILT_IN[name]
    card = json.loads(file.with_suffix(".json").read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
    assert file.stat().st_size < 12e6


def test_the_package_is_installed():
    assert version("sfp-ovss") == __import__("sfp").__version__


SPACE = ROOT / "scripts/space"


def test_the_space_needs_what_the_wheel_does():
    """What setup.py requires, and its extras for the page and for further text towers."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    (base,) = (
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "install_requires"
    )
    parts = map(ast.literal_eval, (base, lists["PAGE"], lists["VISION"]))
    expected = [requirement for part in parts for requirement in part]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == expected


def test_the_spaces_card():
    """The keys by which Hugging Face starts it; Gradio is the release that the tests were run with,
    and the file that is fetched beforehand is open_clip's of the model.
    """
    _, front, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file() and text.strip()
    (pin,) = PINS["gradio"]
    assert pin.specifier.contains(card["sdk_version"]) and card["license"] == "mit"
    assert len(card["short_description"]) <= 60
    (fetched,) = card["preload_from_hub"]
    repository, names = hub_names(entry_of("ViT-B-16-quickgelu", "openai"))
    assert fetched.split() == [repository, names[0]]
