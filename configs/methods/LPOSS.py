"""LPOSS over MaskCLIP as its repository runs it: short side 448, windows 224/112, no thresholds,
mmseg's names; for VOC21 SCLIP's words of the background.

Published with LAION-2B's ViT-B/16. Another base with model.base=SFP. Toyland has no DINO: plain
colours.
"""

model = dict(method="LPOSS", purify=None, pm=None)
own = dict(window=224, stride=112, prob_thd=0.0, area_thd=None)
datasets = dict(
    toyland=dict(model=dict(dino="colour")),
    voc20=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_voc20_tcl.txt", **own)
    ),
    voc21=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_voc21_lposs.txt", **own)
    ),
    context59=dict(short_side=448, model=own),
    context60=dict(short_side=448, model=own),
    coco_object=dict(
        short_side=448,
        model=dict(name_path="{{ fileDirname }}/../cls_coco_object_clearclip.txt", **own),
    ),
    coco_stuff164k=dict(
        short_side=448,
        model=dict(name_path="{{ fileDirname }}/../cls_coco_stuff164k_cliptrase.txt", **own),
    ),
    ade20k=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_ade20k_cliptrase.txt", **own)
    ),
    city_scapes=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_tcl.txt", **own)
    ),
    ade847=dict(short_side=448, model=own),
    context459=dict(short_side=448, model=own),
)
