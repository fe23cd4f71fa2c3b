"""ResCLIP as its repository runs it, over NACLIP; another base with model.base=SCLIP.

One set of constants for all bases. Datasets without published ones take the most similar one's.
"""

model = dict(method="ResCLIP", purify=None, pm=None)
own = dict(logit_scale=40, area_thd=None)
context59 = dict(temp_thd=0.25, rcs_mix=(2.0, 0.4), sfr_mix=(1.8, 0.7), **own)
ade20k = dict(temp_thd=0.25, rcs_mix=(2.0, 0.3), sfr_mix=(2.1, 0.7), **own)
datasets = dict(
    toyland=dict(model=context59),
    voc20=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc20_sclip.txt",
            window=0,
            temp_thd=0.1,
            rcs_mix=(2.0, 0.6),
            sfr_mix=(2.1, 0.6),
            **own,
        )
    ),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt",
            window=0,
            prob_thd=0.1,
            temp_thd=0.5,
            rcs_mix=(2.0, 0.3),
            sfr_mix=(2.2, 0.7),
            **own,
        )
    ),
    context59=dict(model=context59),
    context60=dict(
        model=dict(prob_thd=0.1, temp_thd=0.3, rcs_mix=(2.0, 0.3), sfr_mix=(1.8, 0.7), **own)
    ),
    coco_object=dict(
        model=dict(prob_thd=0.1, temp_thd=0.11, rcs_mix=(2.0, 0.4), sfr_mix=(1.8, 0.7), **own)
    ),
    coco_stuff164k=dict(model=dict(temp_thd=0.11, rcs_mix=(2.0, 0.4), sfr_mix=(1.8, 0.7), **own)),
    ade20k=dict(model=ade20k),
    city_scapes=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            temp_thd=0.1,
            rcs_mix=(2.0, 0.2),
            sfr_mix=(2.1, 0.6),
            **own,
        )
    ),
    ade847=dict(model=ade20k),
    context459=dict(model=context59),
)
