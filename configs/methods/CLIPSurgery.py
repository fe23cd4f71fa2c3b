"""CLIP-Surgery in the common protocol with its 85 prompts and SC-CLIP's thresholds.

Model.feature_surgery=True switches that on.
"""

_base_ = ["SC-CLIP.py"]

model = dict(method="CLIPSurgery")
datasets = {name: dict(model=dict(prompts="imagenet85")) for name in (
    "voc20", "voc21", "context59", "context60", "coco_object", "coco_stuff164k", "ade20k",
    "city_scapes", "ade847", "context459",
)}  # fmt: skip
