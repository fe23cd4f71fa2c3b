"""PASCAL VOC 2012 val, twenty classes, background ignored."""

_base_ = ["base_config.py"]

short_side = 336
dataset = "voc20"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_voc20.txt")
test_dataloader = dict(
    dataset=dict(
        type="PascalVOC20Dataset",
        data_root={{_base_.data_roots.voc2012}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(2048, short_side), keep_ratio=True),
            dict(type="LoadLabels", ignored_in_file=True),  # 255 around the things
            dict(type="PackSegInputs"),
        ],
    )
)
