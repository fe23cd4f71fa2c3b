"""FLOSS over NACLIP as its repository runs it: without PAMR, VOC20 as whole images.

Published on datasets without background; needs model.ranking, a file of tools/rank_prompts.py.
"""

model = dict(method="FLOSS", purify=None, pm=None)
own = dict(logit_scale=100, prob_thd=0.0, area_thd=None)
datasets = dict(
    toyland=dict(
        model=dict(ranking="{{ fileDirname }}/../../sfp/datasets/toyland_prompts.json", **own)
    ),
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_sclip.txt", window=0, **own)),
    voc21=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc21_sclip.txt", window=0, **own)),
    context59=dict(model=own),
    context60=dict(model=own),
    coco_object=dict(model=own),
    coco_stuff164k=dict(model=own),
    ade20k=dict(model=own),
    city_scapes=dict(model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt", **own)),
    ade847=dict(model=own),
    context459=dict(model=own),
)
