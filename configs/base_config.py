"""What all datasets share. Edit it, or override single keys on the command line:

sh scripts/test.sh configs/cfg_toyland.py --cfg-options model.purify=False
sh scripts/test.sh configs/cfg_voc21.py --cfg-options model.pm=LOF model.clip=ViT-L/14
sh scripts/test.sh configs/cfg_voc21.py --cfg-options model.method=SC-CLIP
sh scripts/test.sh configs/cfg_voc21.py --cfg-options model.method=CLIPSeg settings=tcl

A method comes with the settings of configs/methods/NAME.py; settings=tcl has short side 448 and
windows of 448 at stride 224.
"""

default_scope = "mmseg"
custom_imports = dict(imports=["sfp"], allow_failed_imports=False)

# The folder of all datasets: the environment variable SFP_DATA, or data/ beside configs/.
data = "{{$SFP_DATA:{{fileDirname}}/../data}}"
data_roots = dict(
    toyland=f"{data}/toyland",
    voc2012=f"{data}/VOCdevkit/VOC2012",
    voc2010=f"{data}/VOCdevkit/VOC2010",  # Context, 59, 60 and 459 classes
    coco_stuff164k=f"{data}/coco_stuff164k",
    coco_object=f"{data}/coco_stuff164k",  # the same images; the labels' names differ
    ade20k=f"{data}/ADEChallengeData2016",
    ade20k_full=f"{data}/ADE20K_2021_17_01",  # 847 classes
    cityscapes=f"{data}/cityscapes",
)

model = dict(
    type="SFPSegmentor",
    clip="ViT-B/16",  # also ViT-B/32, ViT-L/14, ViT-L/14@336px, Toyland, or any open_clip ViT
    pretrained="openai",  # an open_clip tag, or the path of a .pt or .safetensors file
    method="SFP",  # SFP as published; SFP-release as released; see sfp.list_methods()
    purify=True,  # False switches purification off, None leaves it as the method was published
    # the detector: SOM, L2, LOF, DBSCAN ..., see sfp.list_detectors(); None: the method's own
    pm="SOM",
    # 1-based blocks after which it acts; None: the method's own (SFP: all but the last)
    purify_layers=None,
    window=224,  # 0: the whole image at once
    stride=112,
    logit_scale=40,
    prob_thd=0.0,
    windows_at_once=None,  # largest batch of windows; None: as many as go best on the device
    precision=None,  # fp32, bf16, fp16; None: fp32 on a CPU, fp16 on a GPU
)

short_side = 336  # of the resized image; tools/test.py writes an override into the pipeline
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, short_side), keep_ratio=True),
    dict(type="LoadLabels"),  # 8 or 16 bits
    dict(type="PackSegInputs"),
]
test_dataloader = dict(
    batch_size=1,  # images; their windows share batches, which fills a GPU
    num_workers=2,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(pipeline=test_pipeline),
)
test_cfg = dict(type="TestLoop")
test_evaluator = dict(type="ClassIoUMetric")

# for mmengine's own runner; tools/test.py needs none of it
env_cfg = dict(
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
# the default wrapper refuses a frozen model
model_wrapper_cfg = dict(type="MMSeparateDistributedDataParallel")
log_level = "INFO"
load_from = None
resume = False
