"""DIH-CLIP as its repository has it: SC-CLIP's settings, and thresholds of its own for ViT-L/14.

Its segmentor fails as released, so the settings could not be tried with its code.
"""

model = dict(method="DIH-CLIP", purify=None, pm=None)
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
backbones = {
    "ViT-L-14": dict(
        voc21=dict(model=dict(prob_thd=0.2)), coco_object=dict(model=dict(prob_thd=0.25))
    )
}
