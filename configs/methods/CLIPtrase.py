"""CLIPtrase as its repository runs it at 224: whole images, cluster vote, class scores on VOC20.

Its centre crop is left out: labels keep their size, so its published numbers are not comparable.
For its 336 setting:
--cfg-options model.method=CLIPtrase short_side=336
"""

model = dict(method="CLIPtrase", purify=None, pm=None)
own = dict(window=0, cluster_vote="majority", logit_scale=40, prob_thd=0.0, area_thd=None)
datasets = dict(
    voc20=dict(
        short_side=224,
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc20_cliptrase.txt", class_scores=True, **own
        ),
    ),
    voc21=dict(
        short_side=224, model=dict(name_path="{{ fileDirname }}/../cls_voc21_cliptrase.txt", **own)
    ),
    context59=dict(
        short_side=224,
        model=dict(name_path="{{ fileDirname }}/../cls_context59_cliptrase.txt", **own),
    ),
    context60=dict(
        short_side=224,
        model=dict(name_path="{{ fileDirname }}/../cls_context60_cliptrase.txt", **own),
    ),
    coco_object=dict(
        short_side=224,
        model=dict(name_path="{{ fileDirname }}/../cls_coco_object_cliptrase.txt", **own),
    ),
    coco_stuff164k=dict(
        short_side=224,
        model=dict(name_path="{{ fileDirname }}/../cls_coco_stuff164k_cliptrase.txt", **own),
    ),
    ade20k=dict(
        short_side=224, model=dict(name_path="{{ fileDirname }}/../cls_ade20k_cliptrase.txt", **own)
    ),
    ade847=dict(short_side=224, model=own),
    context459=dict(short_side=224, model=own),
)
