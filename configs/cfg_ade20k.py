"""ADE20K-150 validation, label 0 ignored.

Short side 336 as the paper says; the released config has 384.
"""

_base_ = ["base_config.py"]

dataset = "ade20k"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_ade20k.txt")
test_dataloader = dict(
    dataset=dict(
        type="ADE20KDataset",
        data_root={{_base_.data_roots.ade20k}},
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
    )
)
