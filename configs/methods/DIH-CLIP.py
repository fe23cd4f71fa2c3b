"""DIH-CLIP as its repository has it: SC-CLIP's settings, and thresholds of its own for ViT-L/14.

Its segmentor fails as released, so the settings could not be tried with its code.
"""

_base_ = "./SC-CLIP.py"
model = dict(method="DIH-CLIP")
backbones = {
    "ViT-L-14": dict(
        voc21=dict(model=dict(prob_thd=0.2)), coco_object=dict(model=dict(prob_thd=0.25))
    )
}
