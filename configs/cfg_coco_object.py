"""COCO val2017, 80 things and background: whatever is no thing. Thresholds: those of SFP's
repository.

For ViT-L/14 add model.prob_thd=0.25. The word "bed" is both one of the background's queries and a
class of its own, as in the authors' files: at equal scores the lower class wins, so beds are
background. Of the variants only cls_coco_object_clearclip.txt and cls_coco_object_cliptrase.txt
have "bed" once.
"""

_base_ = ["base_config.py"]

dataset = "coco_object"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_coco_object.txt", logit_scale=55, prob_thd=0.35)
test_dataloader = dict(
    dataset=dict(
        type="COCOObjectDataset",
        data_root={{_base_.data_roots.coco_object}},
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)
