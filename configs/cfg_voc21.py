"""PASCAL VOC 2012 val with background.

Thresholds: those of SFP's repository; for ViT-L/14 add model.prob_thd=0.2.
"""

_base_ = ["base_config.py"]

dataset = "voc21"  # its name in configs/methods/*.py

model = dict(
    name_path="{{ fileDirname }}/cls_voc21.txt", logit_scale=50, prob_thd=0.15, area_thd=0.1
)
test_dataloader = dict(
    dataset=dict(
        type="PascalVOCDataset",
        data_root={{_base_.data_roots.voc2012}},
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
    )
)
