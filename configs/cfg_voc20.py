"""PASCAL VOC 2012 val, twenty classes, background ignored."""

_base_ = ["base_config.py"]

dataset = "voc20"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_voc20.txt")
test_dataloader = dict(
    dataset=dict(
        type="PascalVOC20Dataset",
        data_root={{_base_.data_roots.voc2012}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
    )
)
