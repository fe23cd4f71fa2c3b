"""PASCAL Context val with all its 459 classes in 16-bit labels, ignored 65535."""

_base_ = ["base_config.py"]

dataset = "context459"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_context459.txt")
test_evaluator = dict(ignore_index=65535)
test_dataloader = dict(
    dataset=dict(
        type="PascalContext459Dataset",
        name_path="{{ fileDirname }}/cls_context459.txt",
        data_root={{_base_.data_roots.voc2010}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="annotations_detectron2/pc459_val"),
        ann_file="ImageSets/SegmentationContext/val.txt",
        ignore_index=65535,
    )
)
