"""CorrCLIP as its repository runs it: windows 336/112, DINO ViT-B/8, SAM 2's masks.

Its tables have MetaCLIP's weights (pretrained=metaclip_fullcc), and masks="sam2:points=32" in other
rows. tools/make_masks.py makes the masks of a dataset beforehand. Toyland has neither DINO nor SAM
2: plain colours, and cuts of them.
"""

model = dict(method="CorrCLIP", purify=None, pm=None)
own = dict(window=336, stride=112, logit_scale=40)
cut = dict(type="cut", backbone="colour", side=160)
datasets = dict(
    toyland=dict(model=dict(proxy="colour", masks=cut)),
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
    context60=dict(model=dict(prob_thd=0.15, **own)),
    coco_object=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_proxyclip.txt", prob_thd=0.25, **own
        )
    ),
    coco_stuff164k=dict(model=own),
    ade20k=dict(short_side=448, model=own),
    city_scapes=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            window=224,
            stride=112,
            logit_scale=40,
        ),
    ),
    ade847=dict(short_side=448, model=own),
    context459=dict(model=own),
)
