"""MaskCLIP, official variant, with its 85 prompts.

SC-CLIP's thresholds: sweep model.prob_thd and record it.
"""

_base_ = ["SC-CLIP.py"]

model = dict(method="MaskCLIP")
datasets = {name: dict(model=dict(prompts="imagenet85")) for name in (
    "voc20", "voc21", "context59", "context60", "coco_object", "coco_stuff164k", "ade20k",
    "city_scapes", "ade847", "context459",
)}  # fmt: skip
