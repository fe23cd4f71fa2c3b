"""The package as a plugin in mmsegmentation's own sense.

Its runner and its inferencer, knowing only ``custom_imports``.
"""

from __future__ import annotations

import os
import textwrap

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.plugin import require_mmseg

CONFIG = """
    default_scope = 'mmseg'
    custom_imports = dict(imports=['sfp'])
    model = dict(
        type='SFPSegmentor', clip='Toyland', weights='toyland', method='SFP', name_path='{names}')
    pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 336), keep_ratio=True),
        dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    test_dataloader = dict(
        batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='BaseSegDataset', data_root='{data}',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
            ann_file='ImageSets/Segmentation/val.txt', pipeline=pipeline, img_suffix='.jpg',
            seg_map_suffix='.png', metainfo=dict(classes={classes}, palette={palette})))
    test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    test_cfg = dict(type='TestLoop')
    visualizer = dict(
        type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
    work_dir = '{work}'
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config in mmsegmentation's manner beside two scenes."""
    root = tmp_path_factory.mktemp("plugin")
    toyland.write_split(root / "toyland", "val", 2)
    text = CONFIG.format(
        names=ROOT / "configs/cls_toyland.txt",
        data=root / "toyland",
        classes=toyland.CLASSES,
        palette=[list(colour) for colour in toyland.PALETTE],
        work=root / "work",
    )
    (root / "config.py").write_text(textwrap.dedent(text))
    return root


def run(code: str, folder) -> str:
    """Run code where neither sfp nor any of OpenMMLab's packages is imported yet."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["-c", textwrap.dedent(code)]
    done = forked.run(*command, cwd=folder, environment=environment, imported="library")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_mmsegs_runner_and_metric(folder):
    """As mmsegmentation's tools/test.py does: nothing of ours is imported but by the config."""
    out = run(
        """
        from mmengine.config import Config
        from mmengine.runner import Runner
        metrics = Runner.from_cfg(Config.fromfile('config.py')).test()
        print('measured', metrics['mIoU'] > 0, type(metrics['mIoU']).__name__)
        """,
        folder,
    )
    assert "measured True" in out and "| mushroom |" in out


@pytest.mark.parametrize(
    "order",
    [
        "from mmseg.apis import MMSegInferencer",
        "import sfp\n        from mmseg.apis import MMSegInferencer",
    ],
)
def test_mmsegs_inferencer(order, folder):
    run(
        f"""
        {order}
        inferencer = MMSegInferencer(model='config.py', device='cpu')
        inferencer('toyland/JPEGImages/val_00000.jpg', out_dir='out', show=False)
        """,
        folder,
    )
    labels = np.asarray(Image.open(folder / "out/pred/00000000_pred.png"))
    assert labels.shape == toyland.make_scene("val", 0).labels.shape and labels.max() < 16
    assert (folder / "out/vis/val_00000.jpg").is_file()


# over 5 s: a fresh interpreter, as a user's
def test_mmsegs_apis_with_a_config_of_ours(folder):
    """With what docs/configs.md says that they need besides."""
    text = f"""
        _base_ = [{str(ROOT / "configs/cfg_toyland.py")!r}]
        model = dict(weights='toyland')
        test_pipeline = [
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 336), keep_ratio=True),
            dict(type='PackSegInputs')]
        visualizer = dict(type='SegLocalVisualizer', name='visualizer')
        test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
    """
    (folder / "derived.py").write_text(textwrap.dedent(text))
    out = run(
        """
        from mmseg.apis import MMSegInferencer, inference_model, init_model
        photo = 'toyland/JPEGImages/val_00000.jpg'
        one = inference_model(init_model('derived.py', device='cpu'), photo).pred_sem_seg.data[0]
        two = MMSegInferencer(model='derived.py', device='cpu')(photo)['predictions']
        print('equal', (one.numpy() == two).all(), one.unique().numel() > 1)
        """,
        folder,
    )
    assert "equal True True" in out


@pytest.fixture(scope="module")
def segmentor():
    require_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    return MODELS.build(
        dict(
            type="SFPSegmentor",
            clip="Toyland",
            pretrained="toyland",
            names=list(toyland.CLASSES),
            device="cpu",
        )
    )


def test_it_is_found_in_mmsegs_registry_and_frozen(segmentor):
    assert type(segmentor).__name__ == "SFPSegmentor"
    assert not any(parameter.requires_grad for parameter in segmentor.parameters())
    assert (
        segmentor.dataset_meta["classes"] == toyland.CLASSES
        and len(segmentor.dataset_meta["palette"]) == 16
    )
    assert not segmentor.align_corners


def test_predict_without_samples_and_with_padding(segmentor):
    from mmseg.structures import SegDataSample

    image = segmentor.frozen.normalise(
        torch.from_numpy(toyland.make_scene("val", 1).image.copy()).permute(2, 0, 1)
    )[:, :300, :340]
    (plain,) = segmentor.predict(image[None])
    assert plain.pred_sem_seg.data.shape == (1, 300, 340)
    padded = torch.nn.functional.pad(image, (0, 44, 0, 20))
    (found,) = segmentor.predict(
        padded[None], [SegDataSample(metainfo=dict(ori_shape=(300, 340), img_shape=(300, 340)))]
    )
    assert torch.equal(found.pred_sem_seg.data, plain.pred_sem_seg.data)


def test_modes_of_mmsegs_base_class(segmentor):
    image = torch.randn(1, 3, 224, 240)
    assert segmentor(image, mode="tensor").shape == (1, 16, 224, 240)
    assert segmentor.extract_feat(image).shape == (1, 14, 15, 64)
    with pytest.raises(RuntimeError, match="frozen"):
        segmentor(image, [], mode="loss")


def test_blanked_weights_are_refused_and_others_survive(segmentor, folder):
    """mmseg's init_model sets model.pretrained to None, which must not mean other weights."""
    from mmseg.apis import init_model
    from safetensors.torch import load_file, save_file

    from sfp.clip.built_in import BUILT_IN
    from sfp.segmentor import SFPSegmentor

    with pytest.raises(SFPError, match=r"name the weights in model\.weights"):
        SFPSegmentor("Toyland", None, names=["sky", "sea"])
    own = {key: value * 1.01 for key, value in load_file(BUILT_IN["Toyland"]).items()}
    save_file(own, folder / "own.safetensors", {"quick_gelu": "true"})
    options = dict(weights=str(folder / "own.safetensors"), head_width=64, clip="ViT-B/16")
    model = init_model(str(folder / "config.py"), device="cpu", cfg_options=dict(model=options))
    assert model.frozen.fingerprint != segmentor.frozen.fingerprint
    assert model.frozen.pretrained == str(folder / "own.safetensors")


def test_predict_takes_a_list_without_samples(segmentor):
    images = [torch.randn(3, 224, 240), torch.randn(3, 240, 224)]
    found = segmentor.predict(images, None)
    assert [sample.pred_sem_seg.data.shape for sample in found] == [(1, 224, 240), (1, 240, 224)]


def test_images_of_different_sizes_share_a_batch():
    require_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.structures import SegDataSample

    from sfp.segmentor import SFPSegmentor

    init_default_scope("mmseg")
    segmentor = SFPSegmentor(
        clip="Toyland",
        pretrained="toyland",
        names=list(toyland.CLASSES),
    )
    scene = torch.from_numpy(toyland.make_scene("val", 3).image[..., ::-1].copy()).permute(2, 0, 1)
    images = [scene, scene[:, :150, :230], scene[:, :, :240]]
    samples = [
        SegDataSample(metainfo=dict(ori_shape=(h + 20, w), img_shape=(h, w)))
        for _, h, w in (image.shape for image in images)
    ]
    together = segmentor.test_step(dict(inputs=images, data_samples=samples))
    for image, sample, found in zip(images, samples, together, strict=True):
        own = segmentor.test_step(
            dict(inputs=[image], data_samples=[SegDataSample(metainfo=sample.metainfo)])
        )
        assert found.pred_sem_seg.data.shape[1:] == sample.ori_shape
        assert torch.equal(found.pred_sem_seg.data, own[0].pred_sem_seg.data)


def of(**options):
    """A segmentor of Toyland with further keys."""
    from sfp.segmentor import SFPSegmentor

    return SFPSegmentor("Toyland", names=["sky", "sea"], device="cpu", **options)


def test_weights_taken_away_are_not_replaced():
    with pytest.raises(SFPError, match=r"name the weights in model\.weights"):
        of()


@pytest.mark.parametrize(
    "option",
    [
        dict(init_cfg=dict(type="Pretrained", checkpoint="own.pth")),
        dict(test_cfg=dict(mode="slide", crop_size=(224, 224), stride=(112, 112))),
        dict(train_cfg=dict(work_dir="x")),
    ],
    ids=lambda option: next(iter(option)),
)
def test_keys_that_nothing_reads_are_refused(option):
    with pytest.raises(SFPError, match=f"model.{next(iter(option))} is"):
        of(pretrained="toyland", **option)


@pytest.mark.parametrize("way", ["inferencer", "init_model", "runner", "torch"])
def test_a_checkpoint_after_the_weights_were_hashed_is_refused(way, segmentor, folder, tmp_path):
    from mmengine.runner import Runner
    from mmseg.apis import MMSegInferencer, init_model

    weights = segmentor.frozen.model.state_dict()  # fits nothing: mmengine would go on without it
    config, file = str(folder / "config.py"), str(tmp_path / "own.pth")
    torch.save(dict(state_dict=weights, meta={}), file)
    calls = {
        "inferencer": lambda: MMSegInferencer(config, file, device="cpu"),
        "init_model": lambda: init_model(config, file, device="cpu"),
        "runner": lambda: Runner.from_cfg(_merged(config, load_from=file)).test(),
        "torch": lambda: segmentor.load_state_dict(weights, strict=False),
    }
    with pytest.raises(SFPError, match=r"takes no checkpoint .* in model\.weights"):
        calls[way]()


def _merged(config: str, **keys):
    from mmengine.config import Config

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(keys)
    return cfg


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_runner_is_refused(dtype, segmentor):
    """test_cfg.fp16=True of mmengine's loop is torch.autocast around the model's test_step."""
    with torch.autocast("cpu", dtype), pytest.raises(SFPError, match="autocast is on"):
        segmentor.predict(torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize("way", ["half", "bfloat16", "double"])
def test_weights_of_another_precision_are_refused(way):
    model = getattr(of(pretrained="toyland"), way)()
    with pytest.raises(SFPError, match=r"were loaded as torch\.float32 and have become"):
        model.predict(torch.randn(1, 3, 224, 224))
