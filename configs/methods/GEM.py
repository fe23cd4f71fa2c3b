"""GEM in the common protocol with SC-CLIP's thresholds.

Its own demo resizes to 448x448 and has one prompt.
"""

_base_ = ["SC-CLIP.py"]

model = dict(method="GEM")
