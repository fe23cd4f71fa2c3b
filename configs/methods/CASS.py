"""CASS as its repository runs it, DINO ViT-B/8 through timm.

Weights of the text side are the authors' for each dataset; those without published ones take the
most similar dataset's. The authors' constants are for ViT-B/16; L/14 has more heads than DINO's
ViT-B. Toyland has no DINO: plain colours.
"""

model = dict(method="CASS", purify=None, pm=None)
own = dict(logit_scale=40, area_thd=None)
ade20k = dict(image_weight=0.3, patch_weight=0.05, cluster_distance=0.06, **own)
context = dict(image_weight=0.25, patch_weight=0.04, cluster_distance=0.09, **own)
datasets = dict(
    toyland=dict(model=dict(dino="colour", **context)),
    voc20=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc20_sclip.txt",
            image_weight=0.4,
            patch_weight=0.02,
            cluster_distance=0.1,
            rescale=False,
            **own,
        )
    ),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt",
            window=0,
            class_vector="window",  # the same as the image's
            prob_thd=0.1,
            image_weight=0.1,
            patch_weight=0.03,
            cluster_distance=0.1,
            **own,
        )
    ),
    context59=dict(model=context),
    context60=dict(model=dict(prob_thd=0.1, **context)),
    coco_object=dict(
        model=dict(prob_thd=0.1, image_weight=0.25, patch_weight=0.01, cluster_distance=0.1, **own)
    ),
    coco_stuff164k=dict(
        model=dict(image_weight=0.2, patch_weight=0.02, cluster_distance=0.02, **own)
    ),
    ade20k=dict(model=ade20k),
    city_scapes=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            class_vector="window",
            rescale=False,
            image_weight=0.1,
            patch_weight=0.03,
            cluster_distance=0.14,
            **own,
        )
    ),
    ade847=dict(model=ade20k),
    context459=dict(model=context),
)
