"""Measure what methods cost beside the plain forward pass of open_clip on the same windows, in
interleaved rounds.

python tools/measure_speed.py --methods CLIP SFP SC-CLIP --batch 1 6 24 --out speed.json
python tools/measure_speed.py --methods SFP SFP-release:pm=LOF --model ViT-B/16 --precision bf16
--device cpu
python tools/measure_speed.py --methods CLIP SCLIP SC-CLIP --layout table9

Weights are made up unless --pretrained names some: they change no timing but that of detectors. So
are those of second models that no option names, of the sizes of the method's default; the passes
and operations of each model are counted for one picture.
Quote ratios, not seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfp.backbones.second_clip import SecondCLIP
from sfp.clip.clip import PRECISIONS, FrozenCLIP
from sfp.errors import SFPError, run_command, unknown_choice
from sfp.evaluation.markdown import markdown_table
from sfp.files import whole_file
from sfp.options import HelpFormatter, add_weights_arguments, parse_spec, weights_arguments
from sfp.verification.timing import in_rounds, machine, peak_memory, spread

STAGES = (
    "decode",
    "look",
    "trunk",
    "method",
    "text similarity",
    "stitch",
    "refine",
    "decode labels",
)
PLAIN = "open_clip"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["CLIP", "MaskCLIP", "ClearCLIP", "SC-CLIP", "SFP-release", "SFP"],
        metavar="NAME[:KEY=VALUE,...]",
    )
    parser.add_argument("--model", default="ViT-B/16", help="CLIP model")
    parser.add_argument(
        "--pretrained", help="open_clip tag or checkpoint; made-up weights if not given"
    )
    add_weights_arguments(parser)
    parser.add_argument("--precision", default="fp32", help="of ours: fp32, bf16 or fp16")
    parser.add_argument(
        "--plain-precision", help="of open_clip's forward, --precision if not given"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[24],
        help="windows in a batch; several are compared",
    )
    parser.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=[375, 500],
        metavar=("H", "W"),
        help="size of the picture for the stages",
    )
    parser.add_argument("--short-side", type=int, default=336)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument(
        "--texts",
        type=int,
        metavar="N",
        help="also encode the 80 prompts of N classes, beside open_clip at 77 tokens",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="interleaved; the first, uncounted one warms up"
    )
    parser.add_argument(
        "--layout",
        choices=("ratios", "table9"),
        default="ratios",
        help="table9: as SC-CLIP's Table 9",
    )
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(measure, parser.parse_args())


@torch.inference_mode()
def measure(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON.

    Raises:
        SFPError: unknown method, option, model or precision.
    """
    counts = dict(
        rounds=args.rounds, batch=min(args.batch), image=min(args.image), classes=args.classes
    )
    for name, count in {**counts, "threads": args.threads, "texts": args.texts}.items():
        if count is not None and count < 1:
            raise SFPError(f"--{name} is {count}; give at least 1.")
    if args.plain_precision not in (None, *PRECISIONS):
        raise unknown_choice("--plain-precision", args.plain_precision, PRECISIONS)
    if args.threads:
        torch.set_num_threads(args.threads)
    from sfp import Segmenter

    plain, clip = load_both(args)
    segmenters = {}
    with tempfile.TemporaryDirectory() as folder:
        for text in args.methods:
            name, options = parse_spec(text)
            options = with_made_up(name, options, clip, Path(folder))
            segmenters[text] = Segmenter(
                name, clip, short_side=args.short_side, prompts="photo", text_cache=False, **options
            )
    methods = {text: segmenter.pipeline.method for text, segmenter in segmenters.items()}
    side = clip.model.visual.image_size[0]
    windows = torch.randn(
        max(args.batch), 3, side, side, generator=torch.Generator().manual_seed(0)
    ).to(clip.device)
    # what needs the whole picture, such as its masks, is measured with a picture alone
    of_windows = {
        text: method
        for text, method in methods.items()
        if not (method.whole_images or method.defines("part"))
    }
    contenders: dict[str, Callable[[Tensor], Any]] = {PLAIN: plain.encode_image, **of_windows}
    inputs = {
        **dict.fromkeys(of_windows, windows),
        PLAIN: windows.to(next(plain.visual.parameters()).dtype),
    }

    forward = []
    for batch in args.batch:
        seconds = in_rounds(
            {name: partial(call, inputs[name][:batch]) for name, call in contenders.items()},
            args.rounds,
            clip.device,
        )
        for name, own in seconds.items():
            forward.append(
                {
                    "method": name,
                    "batch": batch,
                    "windows_per_s": batch / statistics.median(own),
                    **spread(own, seconds[PLAIN]),
                }
            )
    for row in forward:
        if row["batch"] == max(args.batch):
            call, own = contenders[row["method"]], inputs[row["method"]]
            row["gflop_per_window"] = gflop(partial(call, own[:1]))
            row["peak_mib"] = peak_memory(partial(call, own), clip.device)

    rates = peak_rates(clip)
    images = measure_images(args, clip, plain, segmenters, rates)
    result = {
        "machine": machine(clip.device), "torch": torch.__version__, "model": args.model,
        "weights": args.pretrained or "made up",
        "precision": args.precision, "plain_precision": args.plain_precision or args.precision,
        "device": clip.device.type,
        "threads": torch.get_num_threads(), "rounds": args.rounds, "window": side,
        "classes": args.classes,
        "image": args.image, "short_side": args.short_side, "forward": forward, "images": images,
        "attention_ms": measure_attention(clip, windows[:6], args.rounds),
        "gflop_per_s": rates[0] / 1e9, "gb_per_s": rates[1] / 1e9,
    }  # fmt: skip
    if args.texts:
        result["texts"] = measure_texts(args.texts, clip, plain)
    print(table9(forward, images, clip) if args.layout == "table9" else tables(result))
    if args.out:
        with whole_file(args.out) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")


def load_both(args: argparse.Namespace):
    """open_clip's own model and ours, of the same weights."""
    import open_clip

    from sfp import load_clip

    name = args.model.replace("/", "-").replace("@", "-").removesuffix("px")
    if args.pretrained:
        options = dict(device=args.device, **weights_arguments(args))
        clip = load_clip(args.model, args.pretrained, precision=args.precision, **options)
        plain = load_clip(args.model, args.pretrained, precision="fp32", **options).model
    else:
        if name + "-quickgelu" not in open_clip.list_models():
            raise SFPError(
                f"Made-up weights need a model that open_clip has with QuickGELU, and "
                f"{args.model} is none; give ViT-B/16, say."
            )
        torch.manual_seed(0)
        logging.disable(logging.WARNING)  # that the weights are made up
        plain = open_clip.create_model(name + "-quickgelu", load_weights=False).eval()
        logging.disable(logging.NOTSET)
        options = dict(device=args.device, precision=args.precision)
        options |= weights_arguments(args) | dict(quick_gelu=True)
        clip = load_clip(name, plain.state_dict(), **options)
        plain = plain.to(clip.device)
    dtype = PRECISIONS[args.plain_precision or clip.precision]
    return plain.to(dtype), clip


def with_made_up(name: str, options: Mapping[str, Any], clip, folder: Path) -> dict[str, Any]:
    """Options with files of made-up weights for the second models of a method, and of its base,
    that have no file; of the sizes that the method names.
    """
    from sfp.methods import METHODS
    from sfp.regions import PROGRAMS

    known = METHODS.options(name)
    found = with_files(known, options, clip, folder)
    if "masks" in known:
        program, of_program = parse_spec(found.get("masks", known["masks"]))
        if program in PROGRAMS.names():
            of_known = PROGRAMS.options(program)
            given = with_files(of_known, of_program, clip, folder)
            if program == "sam2":  # its option names a folder, not a model and a file
                given.setdefault("model", str(made_up(of_known["model"], clip, unused(folder))))
            found["masks"] = dict(type=program, **given)
    if "base" in known:
        base, of_base = parse_spec(found.get("base", known["base"]))
        found["base"] = dict(type=base, **with_made_up(base, of_base, clip, folder))
    return found


def with_files(
    known: Mapping[str, Any], options: Mapping[str, Any], clip, folder: Path
) -> dict[str, Any]:
    """Options, and for each known one that names a model whose file is not given a made-up one."""
    found = dict(options)
    for option in known:
        file, model = f"{option}_weights", found.get(option, known[option])
        if file in known and found.get(file) is None and isinstance(model, str):
            path = made_up(model, clip, unused(folder))
            if path is not None:
                found[file] = str(path)
    return found


def unused(folder: Path) -> Path:
    """A file in the folder that is not there yet."""
    return folder / f"{len(list(folder.iterdir()))}.safetensors"


def made_up(model: str, clip, path: Path) -> Path | None:
    """A file, or a folder, of made-up weights of a second model by the name that an option has for
    it; None for what needs no weights.
    """
    import open_clip
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if timm.is_model(model.split(".")[0]):
        network = timm.create_model(model.split(".")[0], pretrained=False, num_classes=0)
        weights = network.state_dict()
    elif model.startswith("facebook/sam-vit-base"):
        from transformers import SamConfig, SamModel

        SamModel(SamConfig()).save_pretrained(path.with_suffix(""))
        return path.with_suffix("")
    elif model == "facebook/sam2.1-hiera-large":
        from transformers import Sam2Config, Sam2Model

        large = dict(
            model_type="sam2_hiera_det_model",
            hidden_size=144,
            num_attention_heads=2,
            blocks_per_stage=[2, 6, 36, 4],
            embed_dim_per_stage=[144, 288, 576, 1152],
            num_attention_heads_per_stage=[2, 4, 8, 16],
            window_size_per_stage=[8, 4, 16, 8],
            window_positional_embedding_background_size=[7, 7],
            global_attention_blocks=[23, 33, 43],
        )
        sizes = dict(
            model_type="sam2_vision_model",
            backbone_config=large,
            backbone_channel_list=[1152, 576, 288, 144],
        )
        Sam2Model(Sam2Config(vision_config=sizes)).save_pretrained(path.with_suffix(""))
        return path.with_suffix("")
    elif model.replace("/", "-") in open_clip.list_models():
        weights = open_clip.create_model(model.replace("/", "-"), load_weights=False).state_dict()
    elif model == "convolutions":  # CLIP-DINOiser's two
        width = clip.trunk.width
        weights = {
            "obj_proj.weight": torch.randn(256, width, 3, 3) * (9 * width) ** -0.5,
            "obj_proj.bias": torch.zeros(256),
            "bkg_decoder.weight": torch.randn(1, width, 1, 1),
            "bkg_decoder.bias": torch.zeros(1),
        }
    else:
        return None
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def gflop(call: Callable[[], Any]) -> float:
    """10^9 operations, two for a multiplication with addition, of matmuls and convolutions."""
    return operations(call)[0]


def operations(
    call: Callable[[], Any], models: Mapping[str, nn.Module] | None = None
) -> tuple[float, dict[str, dict[str, float]]]:
    """``gflop``, and what of it each model has, see ``counting``."""

    def of_linear(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * int(np.prod(x)) * weight[0]

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # one operator for a whole attention, which the counter doesn't know
    try:
        with (
            FlopCounterMode(
                display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: of_linear}
            ) as counter,
            counting(models or {}, counter) as counts,
        ):
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 1e9, counts


@contextmanager
def counting(
    models: Mapping[str, nn.Module], counter: FlopCounterMode
) -> Iterator[dict[str, dict[str, float]]]:
    """While it lasts, count for each model its "passes", windows and pictures through its patch
    embedding, and the 10^9 operations, "gflop", of all that is called of it as a module. A CLIP's
    trunk calls its embedding by itself, so its passes are counted there, and no operations.
    """
    counts = {name: dict(passes=0, gflop=0.0) for name in models}
    depth, handles = dict.fromkeys(models, 0), []

    def enter(name: str, *_: Any) -> None:
        depth[name] += 1
        if depth[name] == 1:
            counts[name]["gflop"] -= counter.get_total_flops() / 1e9

    def leave(name: str, *_: Any) -> None:
        depth[name] -= 1
        if depth[name] == 0:
            counts[name]["gflop"] += counter.get_total_flops() / 1e9

    def embed(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[name]["passes"] += len(inputs[0])

    trunks = []
    for name, model in models.items():
        clip = getattr(model, "clip", None)
        if isinstance(clip, FrozenCLIP):
            trunk, inner = clip.trunk, clip.trunk.embed

            def counted(windows: Tensor, *rest: Any, name=name, inner=inner, **more: Any) -> Tensor:
                counts[name]["passes"] += len(windows)
                return inner(windows, *rest, **more)

            trunk.embed = counted
            trunks.append(trunk)
            continue
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(partial(enter, name)))
            handles.append(module.register_forward_hook(partial(leave, name), always_call=True))
            if isinstance(module, nn.Conv2d) and module.stride == module.kernel_size > (4, 4):
                handles.append(module.register_forward_pre_hook(partial(embed, name)))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
        for trunk in trunks:
            del trunk.embed  # the class's own is there again


def measure_images(
    args: argparse.Namespace, clip, plain, segmenters: dict, rates: tuple[float, float]
) -> list[dict[str, Any]]:
    """Milliseconds of each stage for one JPEG, beside the plain forward of its windows as one
    batch, and beside that of this trunk; passes and operations of each model.

    The whole is ``Segmenter`` on the file, its text known.
    """
    from PIL import Image

    from sfp.images import read_image, resize_short_side
    from sfp.pipeline.decode import decode
    from sfp.pipeline.score_map import ScoreMap
    from sfp.pipeline.windows import window_grid
    from sfp.regions import MadeMasks
    from sfp.stages import Picture, Text

    names = [f"thing {i}" for i in range(args.classes)]
    noise = np.random.default_rng(0).integers(
        0, 256, (args.image[0] // 8, args.image[1] // 8, 3), np.uint8
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.jpg")
        Image.fromarray(noise).resize(args.image[::-1]).save(path)

        def load() -> Tensor:
            return clip.normalise(
                resize_short_side(read_image(path), args.short_side, clip.trunk.patch)
            ).to(clip.device)

        picture = Picture(load(), read_image(path), str(path))
        for name, segmenter in segmenters.items():
            pipeline, method = segmenter.pipeline, segmenter.pipeline.method
            bank = pipeline.text_bank
            text = Text(bank.encode(names), tuple(names), bank=bank).to(clip.device)
            for source in method.backbones.values():
                if isinstance(source, MadeMasks):  # kept ones would cost nothing the second time
                    source.program.keeps = False
            protocol = pipeline.protocol
            (view,) = pipeline.views([picture])
            image, windows, boxes = view.image, view.crops(), view.boxes.tolist()
            grid = window_grid(*image.shape[1:], protocol.window, protocol.stride)
            for_plain = windows.to(next(plain.visual.parameters()).dtype)
            size = clip.model.visual.image_size[0]
            if windows.shape[-1] != size:  # open_clip takes its native size alone
                for_plain = torch.nn.functional.interpolate(for_plain, size=size)
            parts = windows.split(clip.trunk.windows_at_once(*windows.shape[-2:]))
            own_parts = method.parts([view.looked] * len(grid), boxes)
            maps = method.score(view, text)

            def stitch(
                maps: Tensor = maps,
                grid: list = grid,
                joined: bool = method.joins_windows,
                size: tuple = tuple(image.shape[1:]),
            ) -> ScoreMap:
                if joined:
                    return ScoreMap.of_pixels(maps.permute(2, 0, 1)).resized(tuple(args.image))
                scores = ScoreMap.of_windows(maps, grid, size)
                return scores.resized(tuple(args.image))

            stitched = stitch()
            small = None
            if method.refines_pixels(text):
                small = ScoreMap.of_windows(maps, grid, image.shape[1:]).canvas()

            def refine(
                segmenter=segmenter,
                view=view,
                stitched: ScoreMap = stitched,
                small=small,
                text=text,
            ) -> None:
                if small is not None:
                    segmenter.pipeline.method.refine_pixels(small.clone(), view, text)
                for refiner in segmenter.pipeline.protocol.refiners:
                    refiner(stitched.canvas(), view, text)

            calls = {
                "plain": lambda for_plain=for_plain: plain.encode_image(for_plain),
                "decode": load,
                "trunk": lambda parts=parts: [
                    clip.trunk.run(part, last=clip.trunk.layers - 1) for part in parts
                ],
                "CLIP": lambda parts=parts: [
                    clip.trunk.readout(clip.trunk.run(part)) for part in parts
                ],
                "look": partial(method.look, view.picture),
                "encode": partial(method.run, windows, own_parts),
                "text similarity": partial(method.score, view, text),
                "stitch": stitch,
                "refine": refine,
                "decode labels": lambda stitched=stitched: decode(
                    stitched, torch.arange(args.classes)
                ),
                "image": lambda segmenter=segmenter: segmenter(path, names),
            }
            seconds = in_rounds(calls, args.rounds, clip.device)
            seconds["method"] = [
                encode - trunk
                for encode, trunk in zip(seconds["encode"], seconds["trunk"], strict=True)
            ]
            row = {
                "method": name,
                "windows": len(grid),
                "images_per_s": 1 / statistics.median(seconds["image"]),
            }
            row |= {
                "stages_ms": {stage: 1e3 * statistics.median(seconds[stage]) for stage in STAGES}
            }
            row |= {
                "plain_seconds": statistics.median(seconds["plain"]),
                **spread(seconds["image"], seconds["plain"]),
            }
            models = {"CLIP": SecondCLIP(clip), **method.backbones}
            row["gflop"], row["models"] = operations(calls["image"], models)
            row["over_clip"] = spread(seconds["image"], seconds["CLIP"])
            row["clip_gflop"] = gflop(calls["CLIP"])
            if method.backbones or method.whole_images:
                row["peak_mib"] = peak_memory(calls["image"], clip.device)
            row["floor_ms"] = floors(calls, least_bytes(clip, parts, text, stitched), rates)
            row["decode_peak_mib"] = peak_memory(calls["decode labels"], clip.device)
            rows.append(row)
    return rows


def peak_rates(clip) -> tuple[float, float]:
    """What this machine reached.

    Operations per second of the MLP's first linear map, bytes per second of a copy.
    """
    from sfp.clip.kernels import linear

    weight = clip.trunk.blocks[0].fc.weight
    x, large = (
        torch.randn(1200, weight.shape[1]).to(weight),
        torch.empty(1 << 28, dtype=torch.uint8, device=clip.device),
    )
    other = torch.empty_like(large)
    seconds = in_rounds(
        {"linear": partial(linear, x, weight), "copy": partial(other.copy_, large)}, 20, clip.device
    )
    return 2 * len(x) * weight.numel() / min(seconds["linear"]), 2 * large.numel() / min(
        seconds["copy"]
    )


def measure_attention(clip, windows: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of one block's attention on windows in torch's fused form and by explicit
    weights, between which ``kernels.attend`` chooses by the processor and the precision.
    """
    from sfp.clip.kernels import attend, attend_explicitly

    block = clip.trunk.blocks[0]
    q, k, v = block.qkv(block.normed(clip.trunk.embed(windows)))
    calls = {
        "fused": partial(nn.functional.scaled_dot_product_attention, q, k, v),
        "explicit": partial(attend_explicitly, q, k, v, mean=False),
        "taken": partial(attend, q, k, v),
    }
    seconds = in_rounds(calls, 4 * rounds, clip.device)
    return {name: 1e3 * statistics.median(own) for name, own in seconds.items()}


def _bytes_of(part: Any) -> int:
    """Bytes of all weights in a block, or in a part of one."""
    if isinstance(part, Tensor):
        return part.numel() * part.element_size()
    if isinstance(part, torch.nn.Module):
        return sum(map(_bytes_of, part.parameters()))
    if isinstance(part, dict):
        part = tuple(part.values())
    return sum(map(_bytes_of, part)) if isinstance(part, (tuple, list)) else 0


def least_bytes(clip, parts: tuple[Tensor, ...], text: Any, stitched: Any) -> dict[str, float]:
    """Bytes that a stage must read and write at least.

    Weights once for each group of windows, inputs and outputs once.
    """
    blocks = [_bytes_of(vars(block)) for block in clip.trunk.blocks]
    pixels, height, width = sum(4 * part.numel() for part in parts), *stitched.size
    tokens = sum(len(part) for part in parts) * (
        1 + int(np.prod(clip.trunk.grid_of(*parts[0].shape[-2:])))
    )
    stream, features, cells = (
        4 * tokens * clip.trunk.width,
        4 * tokens * clip.embed_dim,
        4 * stitched.cells.numel(),
    )
    return {
        "decode": 3 * height * width + pixels / len(parts),
        "look": 0,
        "trunk": len(parts) * sum(blocks[:-1]) + pixels + stream,
        "method": len(parts) * blocks[-1] + stream + features,
        "text similarity": features + 4 * text.vectors.numel() + cells,
        "stitch": 2 * cells, "refine": 0, "decode labels": cells + 8 * height * width,
    }  # fmt: skip


def floors(
    calls: dict[str, Callable[[], Any]], least: dict[str, float], rates: tuple[float, float]
) -> dict[str, float]:
    """Milliseconds that each stage takes at least at these rates.

    By its operations or its bytes, whichever is more; refiners and looks are not counted.
    """
    done = {
        stage: gflop(calls[stage]) * 1e9
        for stage in ("trunk", "encode", "text similarity", "stitch", "decode labels")
    }
    done |= {"decode": 0.0, "look": 0.0, "refine": 0.0, "method": done["encode"] - done["trunk"]}
    return {stage: 1e3 * max(done[stage] / rates[0], least[stage] / rates[1]) for stage in STAGES}


def measure_texts(classes: int, clip, plain) -> dict[str, float]:
    """Seconds of the first and of the second start of a text bank, and of open_clip on the same
    texts at full length.

    open_clip's are those of every 20th text, times 20.
    """
    from sfp.clip.text_bank import TextBank

    words = [
        f"{kind} {thing}"
        for kind in ("old", "wooden", "bright red", "large")
        for thing in ("cat", "sofa", "traffic light", "tree", "sea")
    ]
    words = [f"{words[i % len(words)]} {i // len(words) or ''}".strip() for i in range(classes)]
    with tempfile.TemporaryDirectory() as folder:
        bank = TextBank(clip, cache_dir=folder)
        first, second = (
            in_rounds({"": partial(bank.encode, words)}, 1, clip.device, warm=False)[""][0]
            for _ in range(2)
        )
    texts = [prompt.format(word) for word in words for prompt in bank.prompts]
    ids = clip.tokenizer(texts[::20]).to(clip.device)
    full = (
        in_rounds(
            {"": lambda: [plain.encode_text(part) for part in ids.split(64)]},
            1,
            clip.device,
            warm=False,
        )[""][0]
        * len(texts)
        / len(ids)
    )
    return {
        "classes": classes,
        "texts": len(texts),
        "first": first,
        "second": second,
        "open_clip": full,
        "ratio": full / first,
    }


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def tables(result: dict[str, Any]) -> str:
    """The forward pass of windows, and the stages of one picture."""
    head = [
        "method",
        "#batch",
        "#windows/s",
        "#ratio",
        "#least",
        "#largest",
        "#GFLOP/window",
        "#peak MiB",
    ]
    body = [
        [row["method"], str(row["batch"]), number(row["windows_per_s"], 1),
         *(number(row[key], 3) for key in ("ratio", "ratio_min", "ratio_max")),
         number(row.get("gflop_per_window"), 2), number(row.get("peak_mib"))]
        for row in result["forward"]
    ]  # fmt: skip
    stages = [
        [row["method"], *(number(row["stages_ms"][stage], 1) for stage in STAGES),
         number(1e3 * row["seconds"], 1), number(row["ratio"], 3),
         number(1e3 * row["seconds"] / sum(row["floor_ms"].values()), 2), number(row["gflop"], 1)]
        for row in result["images"]
    ]  # fmt: skip
    of_stages = [
        "method",
        *(f"#{column}" for column in (*STAGES, "whole", "ratio", "over its floor", "GFLOP")),
    ]
    height, width = result["image"]
    texts = result.get("texts")
    words = (
        f"\n{texts['classes']} classes x 80 prompts: {texts['first']:.1f} s the first time, "
        f"{1e3 * texts['second']:.1f} ms from the cache; "
        f"open_clip at 77 tokens {texts['open_clip']:.0f} s, {texts['ratio']:.1f} times as long\n"
        if texts
        else ""
    )
    floor = result["images"][0]["floor_ms"]
    least = [*(number(floor[stage], 1) for stage in STAGES), number(sum(floor.values()), 1)]
    stages.append([f"floor of {result['images'][0]['method']}", *least, "", "", ""])
    rates = f"{result['gflop_per_s']:.0f} GFLOP/s in a linear map"
    speed = f"{rates}, {result['gb_per_s']:.0f} GB/s in a copy"
    forms = ", ".join(f"{form} {ms:.1f}" for form, ms in result["attention_ms"].items())
    windows = result["images"][0]["windows"]
    most = max(row["batch"] for row in result["forward"])
    return (
        f"{result['model']}, {result['precision']}, {result['machine']}, {result['threads']} "
        f"threads ({speed}), "
        f"torch {result['torch']}; ratio: time over that of open_clip's encode_image in "
        f"{result['plain_precision']}, "
        f"medians of {result['rounds']} interleaved rounds\n\n"
        f"{markdown_table(head, body)}\nAttention of one block on {min(6, most)} windows, "
        f"milliseconds: {forms}\n\nOne JPEG of {height}x{width} with {result['classes']} "
        f"classes, {windows} windows; "
        f"milliseconds, and the whole over open_clip's forward of these windows, and over the "
        f"method's own floor, the roofline of this machine\n\n"
        f"{markdown_table(of_stages, stages)}{words}{second_models(result)}"
    )


def second_models(result: dict[str, Any]) -> str:
    """What methods with second models cost for the picture: passes of windows, or of the picture,
    through each model, operations, and time over that of CLIP's own forward of the windows.
    """
    rows = [
        row
        for row in result["images"]
        if set(row["models"]) != {"CLIP"} or row["models"]["CLIP"]["passes"] > row["windows"]
    ]
    if not rows:
        return ""
    body = []
    for row in rows:
        models = dict(row["models"])
        passes = models.pop("CLIP")["passes"]
        further = ", ".join(f"{name} {own['passes']}" for name, own in models.items()) or "-"
        spent = sum(own["gflop"] for own in models.values())
        share = row["gflop"] / row["clip_gflop"]
        over = [number(row["over_clip"][key], 2) for key in ("ratio", "ratio_min", "ratio_max")]
        counts = [number(share, 2), number(row["gflop"]), number(spent)]
        start = [row["method"], str(row["windows"]), str(passes), further]
        body.append([*start, *counts, *over, number(row["peak_mib"])])
    head = [
        "method",
        "#windows",
        "#CLIP's passes",
        "others' passes",
        "#GFLOP over CLIP's",
        "#GFLOP",
        "#others' GFLOP",
        "#time over CLIP's",
        "#least",
        "#largest",
        "#peak MiB",
    ]
    return (
        "\nMethods with second models or further passes, the same picture; CLIP's is this trunk's"
        " own forward of the windows. Elementwise products are no operations here.\n\n"
        + markdown_table(head, body)
    )


def table9(forward: list[dict], images: list[dict], clip) -> str:
    """Columns of SC-CLIP's Table 9; its "FLOPs" are multiplications with addition of one window."""
    millions = sum(parameter.numel() for parameter in clip.model.parameters()) / 1e6
    flops = {
        row["method"]: row["gflop_per_window"] / 2 for row in forward if "gflop_per_window" in row
    }
    body = [
        [
            row["method"],
            number(flops[row["method"]], 1),
            number(millions, 1),
            number(row["images_per_s"], 2),
        ]
        for row in images
    ]
    return markdown_table(["method", "#FLOPs(G)", "#Params(M)", "#FPS"], body)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*QuickGELU mismatch.*")
    sys.exit(main())
