"""The recipe of the parity weights meets its digests: if it fails, no golden can match."""

import parity
import pytest


@pytest.mark.parametrize("spec", parity.SPECS)
def test_digest(spec):
    assert parity.digest(parity.state_dict(spec)) == parity.INDEX["weights_sha256"][spec]
