"""CaR as its repository runs it: whole images at their own size, scored by ViT-L/14.

No dense CRF, which the authors have between maps and labels. The authors have no settings for
COCO-Stuff, Cityscapes, ADE-847 and Context-459: thresholds of the most similar dataset. Toyland has
no second CLIP, and its words are among the background's; its class token says little of pictures
that point at one thing, so that no text is dropped.
"""

model = dict(
    method="CaR", purify=None, pm=None, window=0, logit_scale=40, prob_thd=0.0, area_thd=None
)
own = dict(scorer="ViT-L-14", picture="file", prob_thd=0.0, area_thd=None)
voc = dict(
    clipes_threshold=0.4,
    confidence_threshold=0.6,
    mask_threshold=0.4,
    visual_prompts=("circle", "blur"),
    **own,
)
coco = dict(
    clipes_threshold=0.5,
    confidence_threshold=0.3,
    mask_threshold=0.5,
    visual_prompts=("blur", "gray"),
    **own,
)
context = dict(
    clipes_threshold=0.4,
    confidence_threshold=0.25,
    mask_threshold=0.6,
    visual_prompts=("blur", "circle"),
    stuff_prompts=("blur", "gray"),
    **own,
)
context_stuff = (
    "bedclothes", "ceiling", "cloth", "curtain", "floor", "grass", "ground", "light", "mountain",
    "platform", "road", "sidewalk", "sky", "snow", "wall", "water", "window", "wood", "door",
    "fence", "rock",
)  # fmt: skip
ade = dict(
    clipes_threshold=0.7,
    confidence_threshold=0.25,
    mask_threshold=0.6,
    visual_prompts=("gray", "blur"),
    **own,
)
ade_stuff = (
    "wall", "sky", "floor", "tree", "ceiling", "road", "grass", "earth", "mountain", "plant",
    "water", "sea", "field", "sand", "skyscraper", "path", "river", "bridge", "flower", "hill",
    "land", "dirttrack", "apparel", "lake", "waterfall",
)  # fmt: skip
datasets = dict(
    toyland=dict(model=dict(background_words=(), confidence_threshold=0.0)),
    voc20=dict(model=dict(name_path="{{ fileDirname }}/../cls_voc20_plain.txt", **voc)),
    voc21=dict(model=dict(background_class=True, **voc)),
    context59=dict(model=dict(stuff=context_stuff, **context)),
    context60=dict(model=dict(background_class=True, stuff=context_stuff, **context)),
    coco_object=dict(model=dict(background_class=True, **coco)),
    coco_stuff164k=dict(model=coco),
    ade20k=dict(model=dict(stuff=ade_stuff, **ade)),
    city_scapes=dict(model=context),
    ade847=dict(model=ade),
    context459=dict(model=context),
)
