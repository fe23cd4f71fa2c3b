"""LaVG as its repository runs it: SCLIP's settings, masks by normalised cuts of DINO's keys.

tools/make_masks.py makes the masks of a dataset beforehand. Toyland has no DINO: plain colours.
"""

model = dict(method="LaVG", purify=None, pm=None)
datasets = dict(
    toyland=dict(model=dict(masks=dict(type="cut", backbone="colour", side=160))),
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_sclip.txt")),
    voc21=dict(
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_sclip.txt",
            logit_scale=65,
            prob_thd=0.1,
            area_thd=0.1,
            drop_background=True,
        )
    ),
    context60=dict(model=dict(logit_scale=50, prob_thd=0.1)),
    coco_object=dict(model=dict(logit_scale=50, prob_thd=0.1)),
    coco_stuff164k=dict(short_side=448),
    city_scapes=dict(model=dict(name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt")),
)
