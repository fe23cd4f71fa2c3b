"""FreeCP over ClearCLIP as its repository runs it: its thresholds, windows and names.

model.base=GEM, SCLIP or MaskCLIP for its other rows. Its sentences of an LLM, model.sentences, are
in its repository, not here.
"""

model = dict(method="FreeCP", purify=None, pm=None)
own = dict(window=384, stride=112, prob_thd=0.0, area_thd=None)
sure, open_ = dict(rp_thres=0.15, ap_thres=0.8), dict(rp_thres=0.05, ap_thres=0.7)
datasets = dict(
    toyland=dict(model=dict(rp_thres=0.15, ap_thres=0.7)),
    voc20=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc20_freecp.txt",
            rp_thres=0.15,
            ap_thres=0.7,
            **own,
        ),
    ),
    voc21=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_voc21_freecp.txt",
            background_class=True,
            **sure,
            **own,
        ),
    ),
    context59=dict(short_side=448, model=dict(rp_thres=0.1, ap_thres=0.7, **own)),
    context60=dict(short_side=448, model=dict(rp_thres=0.1, ap_thres=0.7, **own)),
    coco_object=dict(
        short_side=448,
        model=dict(
            name_path="{{ fileDirname }}/../cls_coco_object_freecp.txt",
            background_class=True,
            **sure,
            **own,
        ),
    ),
    coco_stuff164k=dict(short_side=448, model=dict(**open_, **own)),
    ade20k=dict(short_side=448, model=dict(**open_, **own)),
    city_scapes=dict(
        short_side=560,
        model=dict(
            name_path="{{ fileDirname }}/../cls_city_scapes_sclip.txt",
            rp_thres=0.1,
            ap_thres=0.8,
            window=224,
            stride=112,
            prob_thd=0.0,
            area_thd=None,
        ),
    ),
    ade847=dict(short_side=448, model=dict(**open_, **own)),
    context459=dict(short_side=448, model=dict(**open_, **own)),
)
