"""The recipe of the parity weights meets its digests: if it fails, no golden can match."""

import json

import parity
import pytest

PATHS = sorted(parity.GOLDENS.glob("index*.json"))
INDEXES = {path.name: json.loads(path.read_text()) for path in PATHS}


@pytest.mark.parametrize(
    ("index", "spec"),
    [(name, spec) for name, index in INDEXES.items() for spec in index["weights_sha256"]],
)
def test_digest(index, spec):
    with parity.seeded(INDEXES[index]["seed"]):
        assert parity.digest(parity.state_dict(spec)) == INDEXES[index]["weights_sha256"][spec]


def test_every_golden_file_has_a_test():
    """In the folder that SFP_GOLDENS names, by default tests/goldens."""
    assert {path.stem for path in parity.GOLDENS.glob("*.npz")} <= parity.TESTED
