"""LPOSS+ with the settings of LPOSS.

Both were published with one setting for all datasets.
"""

_base_ = ["LPOSS.py"]

model = dict(method="LPOSS+")
