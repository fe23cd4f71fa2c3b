"""Plain dense CLIP.

The thresholds are ProxyCLIP's notes for it; sweep model.prob_thd from 0.05 to 0.5 and record it.
"""

model = dict(method="CLIP", purify=None, pm=None)
datasets = dict(
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_plain.txt")),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_proxyclip.txt",
            logit_scale=40,
            prob_thd=0.1,
            area_thd=None,
        )
    ),
    context60=dict(model=dict(prob_thd=0.05)),
    coco_object=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_proxyclip.txt",
            logit_scale=40,
            prob_thd=0.1,
        )
    ),
    city_scapes=dict(model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt")),
)
