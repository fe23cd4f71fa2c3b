"""CLIP-DINOiser as its repository runs it: short side 448, windows 448/224, mmseg's names.

Its rule for the background stands for VOC21 and COCO-Object.

Needs model.dinoiser_weights=FILE, checkpoints/last.pt of wysoczanska/clip_dinoiser, and LAION-2B's
ViT-B/16. Toyland has no such file: colours as the teacher.
"""

model = dict(method="CLIP-DINOiser", purify=None, pm=None)
own = dict(window=448, stride=224, prob_thd=0.0, area_thd=None)
datasets = dict(
    toyland=dict(model=dict(dinoiser="colour")),
    voc20=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_voc20_tcl.txt", **own)
    ),
    voc21=dict(
        short_side=448,
        model=dict(name_path="{{ fileDirname }}/../cls_voc21_tcl.txt", background=True, **own),
    ),
    context59=dict(short_side=448, model=own),
    context60=dict(short_side=448, model=own),
    coco_object=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_clearclip.txt", background=True, **own
        ),
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
