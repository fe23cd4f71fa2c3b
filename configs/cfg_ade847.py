"""ADE20K full (2021_17_01), validation, 847 classes in 16-bit labels, ignored 65535.

A class is one query, synonyms and commas included, as in ProxyCLIP. validation.txt lists the images
without ".jpg".
"""

_base_ = ["base_config.py"]

dataset = "ade847"  # its name in configs/methods/*.py

model = dict(name_path="{{ fileDirname }}/cls_ade847.txt", name_separator="; ")
test_evaluator = dict(ignore_index=65535)
test_dataloader = dict(
    dataset=dict(
        type="ADE847Dataset",
        name_path="{{ fileDirname }}/cls_ade847.txt",
        data_root={{_base_.data_roots.ade20k_full}},
        data_prefix=dict(
            img_path="images_detectron2/validation",
            seg_map_path="annotations_detectron2/validation",
        ),
        ann_file="validation.txt",
        ignore_index=65535,
    )
)
