"""CLIPSeg in the protocol that its paper names (TCL's: short side 448, windows 448/224), with
SC-CLIP's thresholds.

Its paper names no layer for ViT-B; tools/probe_layers.py chose Toyland's on 20 scenes of the split
"tune".
"""

_base_ = ["SC-CLIP.py"]

model = dict(method="CLIPSeg")
tcl = dict(window=448, stride=224)
datasets = dict(
    toyland=dict(model=dict(attention_layer=2)),
    voc20=dict(
        short_side=448, model=dict(name_path="{{ fileDirname }}/../cls_voc20_plain.txt", **tcl)
    ),
    voc21=dict(short_side=448, model=tcl),
    context59=dict(short_side=448, model=tcl),
    context60=dict(short_side=448, model=tcl),
    coco_object=dict(short_side=448, model=tcl),
    coco_stuff164k=dict(short_side=448, model=tcl),
    ade20k=dict(short_side=448, model=tcl),
    city_scapes=dict(short_side=448, model=tcl),
    ade847=dict(short_side=448, model=tcl),
    context459=dict(short_side=448, model=tcl),
)
