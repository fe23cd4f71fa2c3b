"""PASCAL Context val, 59 classes, background ignored."""

_base_ = ["base_config.py"]

dataset = "context59"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_context59.txt")
test_dataloader = dict(
    dataset=dict(
        type="PascalContext59Dataset",
        data_root={{_base_.data_roots.voc2010}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        ann_file="ImageSets/SegmentationContext/val.txt",
    )
)
