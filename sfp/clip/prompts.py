"""The 80 ImageNet prompts of OpenAI's CLIP, made from their pattern."""

from __future__ import annotations

_PICTURES = (
    "bad photo", "sculpture", "low resolution photo", "rendering", "cropped photo", "tattoo",
    "bright photo", "dark photo", "drawing", "close-up photo", "black and white photo", "painting",
    "pixelated photo", "jpeg corrupted photo", "blurry photo", "good photo", "doodle", "sketch",
    "rendition",
)  # fmt: skip
_LOOKS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_MATERIALS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
_ARTICLES = ("a", "the")


def _imagenet_prompts() -> tuple[str, ...]:
    prompts = [f"a {picture} of {article} {{}}." for picture in _PICTURES for article in _ARTICLES]
    prompts += [f"a photo of {article} {look} {{}}." for look in _LOOKS for article in _ARTICLES]
    prompts += [
        f"{kind} of {article} {{}}."
        for kind in ("graffiti", "art", "itap")
        for article in _ARTICLES
    ]
    prompts += [f"{article} {material} {{}}." for material in _MATERIALS for article in _ARTICLES]
    prompts += [f"{article} {{}} in a video game." for article in _ARTICLES]
    prompts += [f"a photo of {word} {{}}." for word in ("a", "the", "many", "one", "my")]
    prompts += ["itap of my {}."]
    return tuple(prompts)


IMAGENET_PROMPTS = _imagenet_prompts()
IN_THE_SCENE_PROMPTS = tuple(
    f"{start} {{}} in the scene."
    for start in ("there is a", "there is the", "this is a", "this is the", "this is one")
)
PROMPT_SETS = {
    "imagenet80": IMAGENET_PROMPTS,
    "imagenet85": IMAGENET_PROMPTS + IN_THE_SCENE_PROMPTS,  # CLIP-Surgery, the original MaskCLIP
    "photo": ("a photo of a {}.",),
}
