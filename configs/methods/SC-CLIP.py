"""SC-CLIP as its repository runs it.

Also the thresholds of methods without their own.
"""

model = dict(method="SC-CLIP", purify=None, pm=None)  # None: as published, LOF after block L-1
datasets = dict(
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_sclip.txt")),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt",
            logit_scale=50,
            prob_thd=0.15,
            area_thd=0.1,
        )
    ),
    context60=dict(model=dict(prob_thd=0.15)),
    coco_object=dict(model=dict(logit_scale=55, prob_thd=0.35)),
    city_scapes=dict(model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt")),
)
