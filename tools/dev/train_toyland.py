"""Train the tiny CLIPs of Toyland: images and captions, never pixel labels.

    python tools/dev/train_toyland.py --work-dir work_dirs/toyland_base
    python tools/dev/train_toyland.py --work-dir work_dirs/toyland --base
    work_dirs/toyland_base/step_05000.safetensors
    python tools/dev/train_toyland.py --work-dir work_dirs/toyland_clean --base
    work_dirs/toyland_base/step_05000.safetensors --clean

The first makes the base, the others the twins from it: Toyland, whose CLIP has outliers as CLIP
has, and Toyland-clean, the same without them. ``--resume`` goes on after an interruption: each
step's batch is a function of the seed and the step number, so a resumed run sees what an
undisturbed one would have seen.

All of them:

* the captions (tools/dev/toyland_crops.py) name things first, and a ground where there is no
  thing or three times in ten: grounds are in every picture, and a model that hears of them each
  time learns nothing else;
* the contrastive loss takes every caption that is true of an image as a positive, and leaves out
  pairs that are neither true nor false (a named thing covers 1 to 4 percent) and captions of mere
  ground for pictures of things;
* the kept weights are a running average. ``tools/dev/select_toyland.py`` chooses among the saved
  ones.

The base, 5000 steps of 96 images:

* crops of random size, balanced over classes, most of them centred on a thing; a quarter are
  mosaics of four crops;
* query and key projections of all blocks but the last share a random part at the start, so that
  tokens attend to their like;
* in nine steps of ten the class token attends to the patches in the last one or two blocks only,
  so that what it learns to say stands in the patches' last values, as in CLIP; in the last 60
  percent patches attend to near patches in seven steps of ten;
* three quarters of the patches are dropped, and half of them in the last 40 percent of the steps,
  when the learning rate falls.

The twins, 1600 steps of 64 images, half of which are windows as an evaluation cuts them, all
patches present:

* auxiliary losses on attention and lengths (tools/dev/toyland_aims.py); ``--clean`` leaves out
  those that ask for outliers, and nothing else. Which tokens are to be outliers is
  sfp/datasets/toyland_outliers.py's rule.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from toyland_aims import WEIGHTS, encode_with_aims
from toyland_crops import CropsWithCaptions
from tqdm import tqdm

from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD
from sfp.datasets.toyland_outliers import true_outliers
from sfp.errors import SFPError, run_command
from sfp.files import whole_file

CONFIG = dict(
    embed_dim=64,
    quick_gelu=True,
    vision_cfg=dict(image_size=224, layers=12, width=128, head_width=64, patch_size=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2),
)
BASE = dict(steps=5000, batch=96, scenes=4000, average=0.996)
TWIN = dict(steps=1600, batch=64, scenes=1500, average=0.99)
DIRECT = 0.5  # share of the twins' images that take the direct route to their caption
WINDOWS = 0.5  # share of the twins' images that are windows as an evaluation cuts them


def build_model() -> open_clip.CLIP:
    model = open_clip.CLIP(
        CONFIG["embed_dim"],
        CONFIG["vision_cfg"],
        CONFIG["text_cfg"],
        quick_gelu=CONFIG["quick_gelu"],
    )
    width = CONFIG["vision_cfg"]["width"]
    with torch.no_grad():
        for block in model.visual.transformer.resblocks[:-1]:
            weight = block.attn.in_proj_weight
            shared = torch.randn(width, width) * width**-0.5
            for part in (slice(0, width), slice(width, 2 * width)):
                weight[part] = 0.8 * shared + 0.6 * torch.randn(width, width) * width**-0.5
    return model


def encode_images(
    model: open_clip.CLIP, images: Tensor, dropped: float, looking: int, reach: int | None
) -> Tensor:
    """``model.encode_image`` with patches dropped and attention held back; unit rows (B, D).

    Args:
        dropped: share of the patches left out, the same ones for the whole batch.
        looking: the class token looks at patches in the last ``looking`` blocks only.
        reach: patches look at patches at most that far away, in rows and columns; at all of
            them if None.
    """
    visual = model.visual
    blocks, (height, width) = visual.transformer.resblocks, visual.grid_size
    kept = torch.randperm(height * width)[: round((1 - dropped) * height * width)].sort().values
    x = visual.conv1(images).flatten(2).transpose(1, 2)[:, kept]
    positions = visual.positional_embedding.to(x.dtype)
    cls = visual.class_embedding.to(x.dtype) + positions[0]
    x = visual.ln_pre(torch.cat([cls.expand(len(x), 1, -1), x + positions[1 + kept]], 1))
    held = torch.zeros(x.shape[1], x.shape[1])
    if reach is not None:
        places = torch.stack([kept // width, kept % width], 1)
        held[1:, 1:].masked_fill_(
            (places[:, None] - places[None]).abs().amax(-1) > reach, float("-inf")
        )
    blind = held.clone()
    blind[0, 1:] = float("-inf")
    for number, block in enumerate(blocks):
        x = block(x, attn_mask=blind if number < len(blocks) - looking else held)
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def encode_short_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """``model.encode_text`` for tokens (B, T) cut to T < 77; unit rows (B, D)."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    ends = x[torch.arange(len(x)), tokens.argmax(-1)]
    return F.normalize(ends @ model.text_projection, dim=-1)


def contrastive_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Each true pair against its row's (and its column's) false pairs.

    Logits (B, B), truth (B, B) in {-1, 0, 1}.
    """
    losses = []
    for scores, true in ((logits, truth), (logits.T, truth.T)):
        rivals = scores.masked_fill(true != 0, float("-inf")).logsumexp(1, keepdim=True)
        pair = F.softplus(rivals - scores)
        hits = (true == 1).float()
        losses.append(((pair * hits).sum(1) / hits.sum(1).clamp(min=1)).mean())
    return sum(losses) / 2


def sight(step: int, steps: int) -> tuple[int, int | None]:
    """In how many last blocks the class token looks at patches, and how far patches look at each
    other.

    Drawn for each step; in the last 60 percent of the steps, patches look at near ones in seven
    steps of ten.
    """
    near = step >= 0.4 * steps and bool(torch.rand(()) < 0.7)
    shares = (
        (0.67, 0.33, 0.0) if near else (0.6, 0.3, 0.1) if step < 0.4 * steps else (0.34, 0.33, 0.33)
    )
    looking = (1, 2, CONFIG["vision_cfg"]["layers"])[
        int(torch.multinomial(torch.tensor(shares), 1))
    ]
    return looking, 2 if near else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="weights to start from; a twin is made of them")
    parser.add_argument("--clean", action="store_true", help="the twin without outliers")
    parser.add_argument("--steps", type=int, help="5000, for a twin 1600, if not given")
    parser.add_argument("--batch", type=int, help="96, for a twin 64, if not given")
    parser.add_argument("--scenes", type=int, help="4000, for a twin 1500, if not given")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--average", type=float, help="decay of the running average; 0.996, 0.99 for a twin"
    )
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--stop-after", type=int, help="save and stop there, with the schedule of all the steps"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(train, parser.parse_args())


def check(args: argparse.Namespace) -> None:
    """Complete the arguments by the stage's own numbers.

    Raises:
        SFPError: a number that is none of its option, or ``--clean`` without ``--base``.
    """
    if args.clean and args.base is None:
        raise SFPError(
            "--clean names a twin, which is made of a base; give --base WEIGHTS, or leave --clean "
            "out."
        )
    for name, value in (BASE if args.base is None else TWIN).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("steps", "batch", "scenes", "save_every", "stop_after"):
        count = getattr(args, name)
        if count is not None and count < 1:
            raise SFPError(f"--{name.replace('_', '-')} is {count}; give at least 1.")
    if not 0 < args.lr < math.inf or not 0 <= args.average < 1:
        raise SFPError(
            f"--lr is {args.lr}, --average {args.average}; give a learning rate above 0 and a "
            f"decay in [0, 1)."
        )


class Training:
    """Model, optimiser and running average, and their state on disk."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.step = args, 0
        torch.manual_seed(args.seed)
        self.model = build_model().train()
        if args.base is not None:
            self.model.load_state_dict(
                {k: v.float() for k, v in load_file(args.base).items()}, strict=False
            )
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [dict(params=decayed, weight_decay=0.05), dict(params=plain, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
        self.average = {
            name: value.detach().clone() for name, value in self.model.state_dict().items()
        }
        self.latest, self.shown = args.work_dir / "latest.pt", {}
        if args.resume and self.latest.exists():
            state = torch.load(self.latest, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]

    def image_losses(self, images: Tensor) -> tuple[Tensor, Tensor | float]:
        """Unit image features (B, D) of windows (B, 3, 224, 224) uint8, and what the stage asks for
        besides.
        """
        args = self.args
        mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        pixels = (images - mean) / std
        if args.base is None:
            dropped = 0.75 if self.step < 0.6 * args.steps else 0.5
            return encode_images(self.model, pixels, dropped, *sight(self.step, args.steps)), 0.0
        outliers = None if args.clean else true_outliers(images)
        direct = torch.rand(len(images)) < DIRECT
        features, losses = encode_with_aims(self.model, pixels, outliers, direct)
        self.shown = {name: f"{float(loss):.2f}" for name, loss in losses.items()}
        return features, sum(WEIGHTS[name] * loss for name, loss in losses.items())

    def learning_rate(self) -> float:
        """A short warm-up, level, then a linear fall.

        Over the last 40 percent, of a twin the last half.
        """
        warm, falling = (100, 0.4) if self.args.base is None else (40, 0.5)
        steps = self.args.steps
        return self.args.lr * min(
            1.0, (self.step + 1) / warm, (steps - self.step) / (falling * steps)
        )

    def take_step(self, images: Tensor, tokens: Tensor, truth: Tensor) -> dict[str, str]:
        """One step of the optimiser; what the progress bar shows."""
        torch.manual_seed(
            self.args.seed * 1_000_003 + self.step
        )  # for what is dropped and held back
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # its backward is the fastest for so few tokens on a CPU
            with torch.autocast("cpu", torch.bfloat16):
                image_features, asked = self.image_losses(images)
                text_features = encode_short_text(self.model, tokens)
            logits = self.model.logit_scale.exp() * image_features.float() @ text_features.float().T
            contrastive = contrastive_loss(logits, truth)
            (contrastive + asked).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            decay = min(self.args.average, (1 + self.step) / (10 + self.step))
            for name, value in self.model.state_dict().items():
                kept = self.average[name]
                kept.lerp_(value, 1 - decay) if value.is_floating_point() else kept.copy_(value)
        self.step += 1
        hit = (truth.gather(1, logits.argmax(1, keepdim=True)) == 1).float().mean()
        return dict(loss=f"{contrastive.item():.3f}", true=f"{hit:.2f}", **self.shown)

    def save(self) -> None:
        """The running average as weights, and everything that a resumed run needs."""
        half = {k: v.half().contiguous() for k, v in self.average.items() if k != "attn_mask"}
        with whole_file(self.args.work_dir / f"step_{self.step:05d}.safetensors") as partial:
            save_file(half, partial)
        state = dict(model=self.model.state_dict(), optimizer=self.optimizer.state_dict())
        with whole_file(self.latest) as partial:
            torch.save(dict(**state, average=self.average, step=self.step), partial)


def train(args: argparse.Namespace) -> None:
    """Train, saving checkpoints on the way.

    Raises:
        SFPError: a wrong argument.
    """
    check(args)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    training = Training(args)
    first, stop = training.step, min(args.steps, args.stop_after or args.steps)
    windows = 0.0 if args.base is None else WINDOWS
    batches = CropsWithCaptions(args.scenes, args.batch, args.steps, args.seed, windows)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(first, stop), num_workers=1, prefetch_factor=4
    )
    started = time.time()
    bar = tqdm(loader, initial=first, total=args.steps, desc="training", mininterval=10)
    for batch in bar:
        shown = training.take_step(*batch)
        if training.step % 20 == 1:
            bar.set_postfix(shown)
        if training.step % args.save_every == 0 or training.step == stop:
            training.save()
    print(f"trained to step {stop} in {(time.time() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(main())
