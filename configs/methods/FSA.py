"""FSA as its repository runs it: over ProxyCLIP with its settings, but for what stands here.

Another base with model.base=NACLIP. Toyland has no DINO: plain colours. With MAE as the proxy add
model.sharpness=4.5.
"""

_base_ = "./ProxyCLIP.py"
model = dict(method="FSA")
datasets = dict(
    toyland=dict(model=dict(_delete_=True, base="ProxyCLIP:proxy=colour")),
    context60=dict(model=dict(prob_thd=0.14)),
    coco_object=dict(model=dict(prob_thd=0.3)),
    city_scapes=dict(model=dict(stride=80)),
)
