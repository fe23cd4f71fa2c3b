"""The CSV of areas: read back, it has the shares of the label maps."""

from __future__ import annotations

import csv

import pytest
from scene import NAMES, result

from sfp.exports.areas import area_table


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_rows(background, parts):
    made = result(background)
    pictures = [made.annotated(name, parts=parts) for name in ("a.jpg", "b, c.jpg")]
    head, *rows = csv.reader(area_table(pictures).splitlines())
    assert head == ["picture", *made.names] and [row[0] for row in rows] == ["a.jpg", "b, c.jpg"]
    for row in rows:
        shares = [float(text) for text in row[1:]]
        assert shares == [
            pytest.approx((made.labels == label).mean(), abs=1e-6) for label in range(len(NAMES))
        ]
        assert shares[3] == 0
