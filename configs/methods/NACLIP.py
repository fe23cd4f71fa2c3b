"""NACLIP as its repository runs it.

PAMR on, VOC as whole images. model.pamr_iterations=0 for its other table.
"""

model = dict(method="NACLIP", purify=None, pm=None)
pamr = dict(pamr_iterations=10, pamr_dilations=(8, 16))
datasets = dict(
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_sclip.txt", window=0, **pamr)),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt",
            window=0,
            logit_scale=40,
            prob_thd=0.1,
            area_thd=None,
            **pamr,
        )
    ),
    context59=dict(model=pamr),
    context60=dict(model=dict(prob_thd=0.1, **pamr)),
    coco_object=dict(model=dict(logit_scale=40, prob_thd=0.1, **pamr)),
    coco_stuff164k=dict(model=pamr),
    ade20k=dict(model=pamr),
    city_scapes=dict(
        model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt", **pamr)
    ),
    ade847=dict(model=pamr),
    context459=dict(model=pamr),
)
