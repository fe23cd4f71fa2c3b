"""PASCAL Context val, 59 classes and background. Threshold: that of SFP's repository."""

_base_ = ["base_config.py"]

dataset = "context60"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_context60.txt", prob_thd=0.15)
test_dataloader = dict(
    dataset=dict(
        type="PascalContext60Dataset",
        data_root={{_base_.data_roots.voc2010}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        ann_file="ImageSets/SegmentationContext/val.txt",
    )
)
