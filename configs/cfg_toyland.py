"""Toyland: built-in scenes and weights, no download."""

_base_ = ["base_config.py"]

dataset = "toyland"  # its name in configs/methods/*.py

model = dict(clip="Toyland", pretrained="toyland", name_path="{{ fileDirname }}/cls_toyland.txt")
test_dataloader = dict(dataset=dict(type="ToylandDataset", data_root={{_base_.data_roots.toyland}}))
