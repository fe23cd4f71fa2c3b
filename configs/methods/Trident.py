"""Trident as its repository runs it: windows 336/224, DINO ViT-B/16, SAM ViT-B; SAM redraws labels.

Without that refinement: --cfg-options model.refine=[]; without SAM altogether model.sam=None, too.
Toyland has neither DINO nor SAM: plain colours.
"""

model = dict(method="Trident", purify=None, pm=None)
own = dict(window=336, stride=224, logit_scale=40, area_thd=None)
datasets = dict(
    toyland=dict(model=dict(proxy="colour", sam="colour")),
    voc20=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc20_plain.txt",
            kappa=0.0,
            refine=[dict(type="SAM", coarse_thresh=0.2)],
            window=336,
            stride=112,
            logit_scale=40,
        ),
    ),
    voc21=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_proxyclip.txt",
            prob_thd=0.2,
            refine=[dict(type="SAM", coarse_thresh=0.2)],
            **own,
        ),
    ),
    context59=dict(
        short_side=576, model=dict(refine=[dict(type="SAM", coarse_thresh=0.15)], **own)
    ),
    context60=dict(
        short_side=576,
        model=dict(prob_thd=0.15, refine=[dict(type="SAM", coarse_thresh=0.15)], **own),
    ),
    coco_object=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_proxyclip.txt",
            prob_thd=0.25,
            refine=[dict(type="SAM", coarse_thresh=0.25)],
            **own,
        ),
    ),
    coco_stuff164k=dict(
        short_side=448, model=dict(refine=[dict(type="SAM", coarse_thresh=0.05)], **own)
    ),
    ade20k=dict(
        short_side=576,
        model=dict(refine_neg_cos=False, refine=[dict(type="SAM", coarse_thresh=0.05)], **own),
    ),
    city_scapes=dict(
        short_side=688,
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            kappa=3.0,
            refine_neg_cos=False,
            sam_halves=True,
            refine=[dict(type="SAM", coarse_thresh=0.1)],
            **own,
        ),
    ),
    ade847=dict(short_side=448, model=dict(refine=[dict(type="SAM", coarse_thresh=0.2)], **own)),
    context459=dict(
        short_side=448, model=dict(refine=[dict(type="SAM", coarse_thresh=0.2)], **own)
    ),
)
