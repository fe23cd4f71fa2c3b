"""ClearCLIP as its repository runs it.

Short side 448, windows 448/224, one background word.
"""

model = dict(method="ClearCLIP", purify=None, pm=None)
own = dict(window=448, stride=224, logit_scale=50)
datasets = dict(
    voc20=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_voc20_plain.txt", **own)
    ),
    voc21=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_clearclip.txt",
            prob_thd=0.5,
            area_thd=None,
            **own,
        ),
    ),
    context59=dict(short_side=448, model=own),
    context60=dict(short_side=448, model=dict(prob_thd=0.15, **own)),
    coco_object=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_clearclip.txt", prob_thd=0.4, **own
        ),
    ),
    coco_stuff164k=dict(short_side=448, model=own),
    ade20k=dict(short_side=448, model=own),
    city_scapes=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            window=224,
            stride=224,
            logit_scale=50,
        ),
    ),
    ade847=dict(short_side=448, model=own),
    context459=dict(short_side=448, model=own),
)
