"""Train the tiny CLIP of Toyland: images and captions, never pixel labels.

    python tools/train_toyland.py --work-dir work_dirs/toyland_clip            # the shipped recipe
    python tools/train_toyland.py --work-dir work_dirs/toyland_clip --resume   # go on after an interruption

Each step's batch is a function of the seed and the step number, so a resumed run sees what an undisturbed one
would have seen. The recipe:

* crops of random size, balanced over classes, most of them centred on a thing; a quarter are mosaics of four crops,
  which leave no surroundings to guess from; captions name what covers over 6 percent of the crop;
* captions name things first, and a ground where there is no thing or three times in ten: grounds are in every picture,
  and a model that hears of them each time sees nothing else;
* the contrastive loss takes every caption that is true of an image as a positive, and leaves out pairs that are
  neither true nor false (a named thing covers 1 to 4 percent) and captions of mere ground for pictures of things;
* query and key projections of all blocks but the last share a random part at the start, so that tokens attend to
  their like;
* in nine steps of ten the class token looks at the patches in the last one or two blocks only, so that what it learns to
  say stands in the patches' last values, as in CLIP, instead of being gathered on the way; in the last 60 percent
  patches look at near patches in seven steps of ten, so that a thing is not told by every patch around it;
* three quarters of the patches are dropped, and half of them in the last 40 percent of the steps, when the learning
  rate falls;
* the kept weights are a running average. ``tools/select_toyland.py`` chooses among the saved ones.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD
from sfp.clip.prompts import IMAGENET_PROMPTS
from sfp.datasets import toyland
from sfp.errors import SFPError, run_command
from sfp.files import whole_file

CONFIG = dict(
    embed_dim=64,
    quick_gelu=True,
    vision_cfg=dict(image_size=224, layers=12, width=128, head_width=64, patch_size=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2),
)
SYNONYMS = {
    "grass": ("lawn", "meadow"), "sea": ("ocean", "water"), "sand": ("beach",), "road": ("street",),
    "house": ("home", "cottage"), "car": ("automobile",), "boat": ("ship", "sailboat"), "flower": ("blossom",), "mushroom": ("toadstool",),
}  # fmt: skip
SCENE_PATTERNS = ("{}.", "a picture of {}.", "a cartoon of {}.", "a scene with {}.", "there is {}.", "a drawing of {}.")
FIRST_THING = 1 + len(toyland.GROUNDS)
NAMED, PRESENT, ABSENT = 0.06, 0.04, 0.01  # share of the crop
TEXT_LENGTH = 32


class CropsWithCaptions(torch.utils.data.Dataset):
    """Item ``step`` is that step's whole batch: images (B, 3, 224, 224) uint8, tokens (B, 32), truth (B, B) int8.

    ``truth[i, j]`` is 1 where caption j is true of image i, 0 where it is false, -1 where it is in between.
    """

    def __init__(self, scenes: int, batch: int, steps: int, seed: int):
        self.scenes, self.batch, self.steps, self.seed = scenes, batch, steps, seed
        self.tokenize = open_clip.SimpleTokenizer()

    def __len__(self) -> int:
        return self.steps

    def load(self) -> None:
        self.pool = [toyland.make_scene("train", i) for i in tqdm(range(self.scenes), desc="drawing scenes")]
        self.places: list[list[tuple[int, tuple | None]]] = [[] for _ in toyland.CLASSES]
        for number, scene in enumerate(self.pool):
            for label, box in scene.things:
                self.places[label].append((number, box))
            share = np.bincount(scene.labels.ravel(), minlength=len(toyland.CLASSES)) / scene.labels.size
            for label in range(1 + len(toyland.GROUNDS)):
                if share[label] > 0.05:
                    self.places[label].append((number, None))

    def crop(self, rng: np.random.Generator, label: int, side_out: int) -> tuple[np.ndarray, np.ndarray]:
        """A square crop with the class in its middle, resized: image (S, S, 3), labels (S/4, S/4)."""
        number, box = self.places[label][rng.integers(len(self.places[label]))]
        scene = self.pool[number]
        height, width = scene.labels.shape
        if box is None:
            rows, cols = np.nonzero(scene.labels[::8, ::8] == label)
            pick = rng.integers(len(rows))
            y, x, side = 8 * rows[pick], 8 * cols[pick], rng.uniform(56, 260)
        else:
            reach = max(box[2] - box[0], box[3] - box[1])
            side = reach * math.exp(rng.uniform(math.log(0.5), math.log(2.4)))
            x = (box[0] + box[2]) / 2 + rng.uniform(-0.25, 0.25) * reach
            y = (box[1] + box[3]) / 2 + rng.uniform(-0.25, 0.25) * reach
        side = int(np.clip(side, 40, min(height, width)))
        top, left = int(np.clip(y - side / 2, 0, height - side)), int(np.clip(x - side / 2, 0, width - side))
        window = np.s_[top : top + side, left : left + side]
        method = cv2.INTER_AREA if side > side_out else cv2.INTER_LINEAR
        image = cv2.resize(scene.image[window], (side_out, side_out), interpolation=method)
        labels = cv2.resize(scene.labels[window], (side_out // 4, side_out // 4), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return image, labels

    def caption(self, rng: np.random.Generator, named: list[int]) -> str:
        words = []
        for label in named:
            name = toyland.CLASSES[label]
            if name in SYNONYMS and rng.random() < 0.15:
                name = str(rng.choice(SYNONYMS[name]))
            words.append(name)
        if len(words) == 1:
            return IMAGENET_PROMPTS[rng.integers(len(IMAGENET_PROMPTS))].format(words[0])
        words = [f"{('a', 'the')[rng.integers(2)]} {word}" for word in words]
        joined = ", ".join(words[:-1]) + " and " + words[-1]
        return SCENE_PATTERNS[rng.integers(len(SCENE_PATTERNS))].format(joined)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if not hasattr(self, "pool"):
            self.load()
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, step])
        classes = len(toyland.CLASSES)
        images = np.empty((self.batch, 224, 224, 3), np.uint8)
        shares, names, captions = np.zeros((self.batch, classes)), np.zeros((self.batch, classes), bool), []
        targets = rng.permutation(np.arange(self.batch) % classes)
        for i, target in enumerate(targets):
            if rng.random() < 0.25:
                others = [target, *rng.integers(0, classes, 3)]
                parts = [self.crop(rng, int(other), 112) for other in rng.permutation(others)]
                image, labels = (
                    np.concatenate([np.concatenate([p[k] for p in parts[:2]], 1), np.concatenate([p[k] for p in parts[2:]], 1)])
                    for k in (0, 1)
                )
            else:
                image, labels = self.crop(rng, int(target), 224)
            gain, lift = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.9, 1.1), rng.uniform(-12, 12)
            images[i] = np.clip(image * gain + lift, 0, 255)
            shares[i] = np.bincount(labels.ravel(), minlength=classes) / labels.size
            seen = np.flatnonzero(shares[i] > NAMED)
            things, grounds = seen[seen >= FIRST_THING], seen[seen < FIRST_THING]
            named = list(rng.permutation(things)[: rng.choice((1, 2, 3), p=[0.5, 0.3, 0.2])])
            if not named or (len(grounds) and rng.random() < 0.3):
                named.append(target if target in grounds else rng.choice(grounds))
            names[i, named] = True
            captions.append(self.caption(rng, [int(v) for v in rng.permutation(named)]))
        lowest = np.where(names[None], shares[:, None], 1.0).min(-1)  # (image, caption)
        truth = np.where(lowest > PRESENT, 1, np.where(lowest < ABSENT, 0, -1)).astype(np.int8)
        full, bare = shares[:, FIRST_THING:].max(1) > PRESENT, ~names[:, FIRST_THING:].any(1)
        truth[full[:, None] & bare[None] & (truth == 1)] = -1
        tokens = self.tokenize(captions)
        assert int((tokens != 0).sum(1).max()) <= TEXT_LENGTH
        return torch.from_numpy(images).permute(0, 3, 1, 2), tokens[:, :TEXT_LENGTH], torch.from_numpy(truth)


def build_model() -> open_clip.CLIP:
    model = open_clip.CLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], CONFIG["text_cfg"], quick_gelu=CONFIG["quick_gelu"])
    width = CONFIG["vision_cfg"]["width"]
    with torch.no_grad():
        for block in model.visual.transformer.resblocks[:-1]:
            weight = block.attn.in_proj_weight
            shared = torch.randn(width, width) * width**-0.5
            for part in (slice(0, width), slice(width, 2 * width)):
                weight[part] = 0.8 * shared + 0.6 * torch.randn(width, width) * width**-0.5
    return model


def encode_images(model: open_clip.CLIP, images: Tensor, dropped: float, looking: int, reach: int | None) -> Tensor:
    """``model.encode_image`` with patches dropped and attention held back; unit rows (B, D).

    Args:
        dropped: share of the patches left out, the same ones for the whole batch.
        looking: the class token looks at patches in the last ``looking`` blocks only.
        reach: patches look at patches at most that far away, in rows and columns; at all of them if None.
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
        held[1:, 1:].masked_fill_((places[:, None] - places[None]).abs().amax(-1) > reach, float("-inf"))
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
    """Each true pair against its row's (and its column's) false pairs; logits (B, B), truth (B, B) in {-1, 0, 1}."""
    losses = []
    for scores, true in ((logits, truth), (logits.T, truth.T)):
        rivals = scores.masked_fill(true != 0, float("-inf")).logsumexp(1, keepdim=True)
        pair = F.softplus(rivals - scores)
        hits = (true == 1).float()
        losses.append(((pair * hits).sum(1) / hits.sum(1).clamp(min=1)).mean())
    return sum(losses) / 2


def schedule(step: int, steps: int, peak: float) -> tuple[float, float]:
    """Learning rate (100 steps of warm-up, level, linear fall over the last 40 percent) and share of dropped patches."""
    remaining = (steps - step) / (0.4 * steps)
    return peak * min(1.0, (step + 1) / 100, remaining), 0.75 if remaining > 1 else 0.5


def sight(step: int, steps: int) -> tuple[int, int | None]:
    """In how many last blocks the class token looks at patches, and how far patches look at each other.

    Drawn for each step; in the last 60 percent of the steps, patches look at near ones in seven steps of ten.
    """
    near = step >= 0.4 * steps and bool(torch.rand(()) < 0.7)
    shares = (0.67, 0.33, 0.0) if near else (0.6, 0.3, 0.1) if step < 0.4 * steps else (0.34, 0.33, 0.33)
    looking = (1, 2, CONFIG["vision_cfg"]["layers"])[int(torch.multinomial(torch.tensor(shares), 1))]
    return looking, 2 if near else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/toyland_clip"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.996, help="decay of the running average of the weights")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-after", type=int, help="save and stop there, with the schedule of all the steps")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(train, parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train, saving checkpoints on the way.

    Raises:
        SFPError: a number that is none of its option.
    """
    for name in ("steps", "batch", "scenes", "save_every", "stop_after"):
        count = getattr(args, name)
        if count is not None and count < 1:
            raise SFPError(f"--{name.replace('_', '-')} is {count}; give at least 1.")
    if not 0 < args.lr < math.inf or not 0 <= args.average < 1:
        raise SFPError(f"--lr is {args.lr}, --average {args.average}; give a learning rate above 0 and a decay in [0, 1).")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    latest = args.work_dir / "latest.pt"

    torch.manual_seed(args.seed)
    model = build_model().train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [dict(params=decayed, weight_decay=0.05), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first = 0
    if args.resume and latest.exists():
        state = torch.load(latest, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]

    stop = min(args.steps, args.stop_after or args.steps)
    batches = CropsWithCaptions(args.scenes, args.batch, args.steps, args.seed)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(first, stop), num_workers=1, prefetch_factor=4)
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    started = time.time()
    bar = tqdm(loader, initial=first, total=args.steps, desc="training", mininterval=10)
    for step, (images, tokens, truth) in enumerate(bar, start=first):
        torch.manual_seed(args.seed * 1_000_003 + step)  # for what is dropped and held back
        rate, dropped = schedule(step, args.steps, args.lr)
        looking, reach = sight(step, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # its backward is the fastest for so few tokens on a CPU
            with torch.autocast("cpu", torch.bfloat16):
                image_features = encode_images(model, (images - mean) / std, dropped, looking, reach)
                text_features = encode_short_text(model, tokens)
            logits = model.logit_scale.exp() * image_features.float() @ text_features.float().T
            loss = contrastive_loss(logits, truth)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            decay = min(args.average, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)
        if step % 20 == 0:
            hit = (truth.gather(1, logits.argmax(1, keepdim=True)) == 1).float().mean()
            bar.set_postfix(loss=f"{loss.item():.3f}", true=f"{hit:.2f}", scale=f"{model.logit_scale.exp().item():.0f}")
        if (step + 1) % args.save_every == 0 or step + 1 == stop:
            half = {k: v.half().contiguous() for k, v in average.items() if k != "attn_mask"}
            with whole_file(args.work_dir / f"step_{step + 1:05d}.safetensors") as partial:
                save_file(half, partial)
            with whole_file(latest) as partial:
                torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), average=average, step=step + 1), partial)
    print(f"trained to step {stop} in {(time.time() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(main())
