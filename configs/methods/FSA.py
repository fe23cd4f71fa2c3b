"""FSA as its repository runs it, over ProxyCLIP: windows 336/112, DINO ViT-B/8 through timm.

Another base with model.base=NACLIP. Toyland has no DINO: plain colours. With MAE as the proxy add
model.sharpness=4.5.
"""

model = dict(method="FSA", purify=None, pm=None)
own = dict(window=336, stride=112, logit_scale=40)
datasets = dict(
    toyland=dict(model=dict(base="ProxyCLIP:proxy=colour")),
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_plain.txt", **own)),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_proxyclip.txt",
            prob_thd=0.2,
            area_thd=None,
            **own,
        )
    ),
    context59=dict(model=own),
    context60=dict(model=dict(prob_thd=0.14, **own)),
    coco_object=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_proxyclip.txt", prob_thd=0.3, **own
        )
    ),
    coco_stuff164k=dict(model=own),
    ade20k=dict(short_side=448, model=own),
    city_scapes=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            window=224,
            stride=80,
            logit_scale=40,
        ),
    ),
    ade847=dict(short_side=448, model=own),
    context459=dict(short_side=448, model=own),
)
