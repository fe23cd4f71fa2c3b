"""Cityscapes val, 19 classes, labels as train ids."""

_base_ = ["base_config.py"]

dataset = "city_scapes"  # its name in configs/methods/*.py
short_side = 560

model = dict(name_path="{{ fileDirname }}/cls_city_scapes.txt")
test_dataloader = dict(
    dataset=dict(
        type="CityscapesDataset",
        data_root={{_base_.data_roots.cityscapes}},
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(2048, short_side), keep_ratio=True),
            dict(type="LoadLabels"),
            dict(type="PackSegInputs"),
        ],
    )
)
