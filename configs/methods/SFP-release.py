"""SFP as its repository runs it.

The datasets' configs are its own, but for ADE20K's short side and ViT-L/14's thresholds.
"""

model = dict(method="SFP-release", purify=True, pm="SOM")
datasets = dict(ade20k=dict(short_side=384))
backbones = {
    "ViT-L-14": dict(
        voc21=dict(model=dict(prob_thd=0.2)), coco_object=dict(model=dict(prob_thd=0.25))
    )
}
