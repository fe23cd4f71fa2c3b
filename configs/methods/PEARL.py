"""PEARL as its repository's run.sh runs it, with TLP.

Without: --cfg-options model.method=PEARL model.refine=[]
"""

model = dict(method="PEARL", purify=None, pm=None)
own = dict(logit_scale=40, area_thd=None, refine=[dict(type="TLP", grid=80)])
datasets = dict(
    toyland=dict(model=own),
    voc20=dict(
        model=dict(name_path="{{ fileDirname }}/../cls_voc20_sclip.txt", window=0, **own),
    ),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt", window=0, prob_thd=0.1, **own
        ),
    ),
    context59=dict(model=own),
    context60=dict(model=dict(prob_thd=0.1, **own)),
    coco_object=dict(model=dict(prob_thd=0.1, **own)),
    coco_stuff164k=dict(model=own),
    ade20k=dict(model=dict(alpha_kk=0.3, **own)),
    city_scapes=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            alpha_kk=0.3,
            logit_scale=40,
            refine=[dict(type="TLP", grid=224)],
        )
    ),
    ade847=dict(model=dict(alpha_kk=0.3, **own)),
    context459=dict(model=own),
)
