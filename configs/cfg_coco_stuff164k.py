"""COCO-Stuff 164k, val2017, 171 things and stuff."""

_base_ = ["base_config.py"]

dataset = "coco_stuff164k"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_coco_stuff164k.txt")
test_dataloader = dict(
    dataset=dict(
        type="COCOStuffDataset",
        data_root={{_base_.data_roots.coco_stuff164k}},
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)
