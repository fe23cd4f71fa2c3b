"""Whatever bytes a file has, reading it gives a sound result or one sentence.

No other error, no hang, no flood, no new file.
"""

from __future__ import annotations

import io
import json
import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from sfp import SFPError, load_clip
from sfp.clip.checkpoints import read_checkpoint
from sfp.clip.text_bank import TextBank
from sfp.datasets.preparation.context import decode_mask
from sfp.exports.png import png_provenance, read_provenance
from sfp.images import read_image
from sfp.names import parse_names
from sfp.options import parse_options, parse_spec
from sfp.pipeline import Vocabulary
from sfp.result import Segmentation

pytestmark = pytest.mark.filterwarnings("ignore")
FUZZ = settings(
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
)
FLOOD = 1 << 20  # kB that the process may have grown by at its largest


@pytest.fixture(autouse=True)
def no_flood():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < FLOOD


def sound_or_told(read: Callable[[], Any], folder: Path | None = None) -> Any:
    """What was read, None where it ended in one sentence; no file is new in the folder."""
    before = sorted(folder.iterdir()) if folder else None
    try:
        return read()
    except SFPError as error:
        said = str(error)
        assert said.strip() and "\n" not in said.strip(), said
        return None
    finally:
        assert folder is None or sorted(folder.iterdir()) == before


@st.composite
def broken(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of some files with bytes changed, put in, taken out or doubled, or cut.

    Now and then mere noise.
    """
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        near_head = draw(st.booleans())
        place = draw(st.integers(0, min(len(data), 120) if near_head else len(data)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            data[place : place + 4] = draw(
                st.sampled_from(
                    [
                        b"\0\0\0\0",
                        b"\xff\xff\xff\xff",
                        b"\x7f\xff\xff\xff",
                        b"\x80\0\0\0",
                        b"\0\0\0\1",
                    ]
                )
            )
        elif kind == 2:
            data[place:place] = draw(st.binary(max_size=8))
        elif kind == 3:
            del data[place : place + draw(st.integers(1, 16))]
        else:
            del data[place:]
    return bytes(data)


def pictures() -> list[bytes]:
    """Small files of each kind that is read."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    rgb, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    palette = rgb.quantize(16)
    files = [
        (rgb, kind, {})
        for kind in (
            "JPEG",
            "PNG",
            "GIF",
            "TIFF",
            "WEBP",
            "BMP",
            "PPM",
            "TGA",
            "ICO",
            "PCX",
            "SGI",
            "JPEG2000",
            "DDS",
        )
    ]
    files += [
        (rgb, "TIFF", {"compression": packing})
        for packing in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
    ]
    files += [
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (palette, "PNG", {}),
    ]
    files += [
        (palette, "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {}),
        (grey.convert("LA"), "PNG", {}),
        (grey, "JPEG", {}),
    ]
    files += [
        (grey.convert("1"), "PNG", {}),
        (grey.convert("F"), "TIFF", {}),
        (grey.convert("I"), "TIFF", {}),
        (rgb.convert("LAB"), "TIFF", {}),
    ]
    files += [
        (palette, "GIF", {"save_all": True, "append_images": [palette] * 3}),
        (rgb, "JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0"}),
    ]
    found = []
    for picture, kind, options in files:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found.append(file.getvalue())
    return [*found, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"]


@FUZZ
@given(broken(pictures()))
def test_pictures(tmp_path, data):
    file = tmp_path / "picture"
    file.write_bytes(data)
    pixels = sound_or_told(lambda: read_image(file), tmp_path)
    assert pixels is None or (
        pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    )


def sound_words(vocabulary: Vocabulary | None) -> bool:
    if vocabulary is None:
        return True
    sizes = len(vocabulary.names) == max(vocabulary.class_of_query) + 1 and len(
        vocabulary.queries
    ) == len(vocabulary.class_of_query)
    return sizes and all(word.strip() == word and word for word in vocabulary.queries)


@FUZZ
@given(
    st.one_of(
        broken(
            [
                b"sea, ocean\nsky\nboat\n",
                "caf\u00e9\r\n\ufeffdog, \n".encode(),
                "cat\n".encode("utf-16"),
            ]
        ),
        st.text().map(str.encode),
    ),
    st.text(max_size=3),
)
def test_names_files(tmp_path, data, separator):
    file = tmp_path / "names.txt"
    file.write_bytes(data)
    assert sound_words(sound_or_told(lambda: Vocabulary.from_file(file, separator), tmp_path))
    assert sound_words(sound_or_told(lambda: Vocabulary.from_file(file)))


@FUZZ
@given(st.text(st.one_of(st.sampled_from(",; \n\t"), st.characters())))
def test_typed_names(text):
    assert sound_words(sound_or_told(lambda: Vocabulary.from_names(parse_names(text))))


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Tower(torch.nn.Module):
    """Holds a state dict by its dotted names."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for name, value in weights.items():
            *path, last = name.split(".")
            room: torch.nn.Module = self
            for part in path:
                if not hasattr(room, part):
                    room.add_module(part, torch.nn.Module())
                room = getattr(room, part)
            room.register_buffer(last, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def checkpoints() -> tuple[list[bytes], list[bytes]]:
    """Small sound checkpoints of each kind, and those of them that are zip archives."""
    weights = {
        "visual.conv1.weight": torch.ones(64, 3, 4, 4), "visual.class_embedding": torch.ones(64),
        "visual.proj": torch.ones(64, 8),
        "visual.positional_embedding": torch.ones(5, 64),
        "token_embedding.weight": torch.ones(9, 8),
        "positional_embedding": torch.ones(5, 8), "text_projection": torch.ones(8, 8),
    }  # fmt: skip
    for tower, width in (("visual.", 64), ("", 8)):
        block = f"{tower}transformer.resblocks.0."
        for name, rows in (("attn.in_proj_", 3 * width), ("mlp.c_fc.", 4 * width)):
            weights |= {
                f"{block}{name}weight": torch.ones(rows, width),
                f"{block}{name}bias": torch.ones(rows),
            }
        weights |= {
            f"{block}attn.out_proj.weight": torch.ones(width, width),
            f"{block}attn.out_proj.bias": torch.ones(width),
        }
        weights |= {
            f"{block}mlp.c_proj.weight": torch.ones(width, 4 * width),
            f"{block}mlp.c_proj.bias": torch.ones(width),
        }
        norms = [
            f"{block}ln_1",
            f"{block}ln_2",
            *(["visual.ln_pre", "visual.ln_post"] if tower else ["ln_final"]),
        ]
        weights |= {
            f"{norm}.{kind}": torch.ones(width) for norm in norms for kind in ("weight", "bias")
        }
    weights["logit_scale"] = torch.tensor(1.0)
    files = []
    for save in (
        torch.save,
        lambda *a: torch.save(*a, _use_new_zipfile_serialization=False),
        lambda w, f: torch.jit.save(torch.jit.script(Tower(w)), f),
    ):
        file = io.BytesIO()
        save(weights, file)
        files.append(file.getvalue())
    return [safetensors.torch.save(weights), *files], [files[0], files[2]]


WHOLE, ARCHIVES = checkpoints()
MEMBERS = [unpacked(data) for data in ARCHIVES]


def load(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_clip("ViT-B-16", file, device="cpu", quick_gelu=True, head_width=64)


def test_the_seeds_are_sound(tmp_path):
    for number, data in enumerate(WHOLE):
        (tmp_path / f"{number}.pt").write_bytes(data)
        assert load(tmp_path / f"{number}.pt").trunk.layers == 1


@FUZZ
@given(broken(WHOLE))
def test_checkpoints(tmp_path, data):
    file = tmp_path / "weights.pt"
    file.write_bytes(data)
    if sound_or_told(lambda: read_checkpoint(file), tmp_path):
        sound_or_told(lambda: load(file), tmp_path)


@FUZZ
@given(st.integers(0, 1), st.data())
def test_what_lies_in_archives(tmp_path, number, data):
    """The checksums of the archives fit, so that the broken parts are read."""
    members = dict(MEMBERS[number])
    name = data.draw(
        st.sampled_from([name for name in members if name.endswith(".pkl")] * 3 + list(members))
    )
    members[name] = data.draw(broken([members[name]]))
    file = tmp_path / "weights.pt"
    file.write_bytes(packed(members))
    if sound_or_told(lambda: read_checkpoint(file), tmp_path):
        sound_or_told(lambda: load(file), tmp_path)


def results() -> list[bytes]:
    labels = np.arange(12).reshape(3, 4) % 3
    image, scores = np.zeros((3, 4, 3), np.uint8), np.full((3, 3, 4), 1 / 3, np.float32)
    files = []
    for kept in (scores, None):
        file = io.BytesIO()
        texts = dict(
            names=np.array(["sea", "sky", "boat"]),
            protocol=np.array(json.dumps({"method": "CLIP"})),
        )
        np.savez_compressed(
            file,
            labels=labels.astype(np.uint8),
            image=image,
            **texts,
            **({} if kept is None else {"scores": kept}),
        )
        files.append(file.getvalue())
    return files


RESULTS = results()


def used(path: Path) -> Segmentation:
    result = Segmentation.load(path)
    result.overlay(), result.to_coco(), result.at(0, 0), repr(result.areas)
    return result


@FUZZ
@given(st.booleans(), st.data())
def test_results(tmp_path, whole, data):
    file = tmp_path / "result.npz"
    if whole:
        file.write_bytes(data.draw(broken(RESULTS)))
    else:
        members = unpacked(data.draw(st.sampled_from(RESULTS)))
        name = data.draw(st.sampled_from(list(members)))
        file.write_bytes(packed({**members, name: data.draw(broken([members[name]]))}))
    sound_or_told(lambda: used(file), tmp_path)


def cards() -> list[bytes]:
    found = []
    for card in ({"method": "CLIP", "names": ["sea"]}, [1], {}):
        file = io.BytesIO()
        Image.new("P", (3, 4)).save(file, "PNG", pnginfo=png_provenance(card))
        found.append(file.getvalue())
    return found


@FUZZ
@given(broken(cards()))
def test_cards(tmp_path, data):
    file = tmp_path / "labels.png"
    file.write_bytes(data)
    assert isinstance(read_provenance(file), dict | None)


MASKS = [np.random.default_rng(n).random((9, 7)) < 0.4 for n in range(4)]
COUNTS = [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in MASKS]


@FUZZ
@given(
    st.one_of(
        broken(COUNTS).map(lambda data: data.decode("latin-1")),
        st.text(),
        st.lists(st.integers()),
    ),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_run_lengths(counts, height, width):
    try:
        mask = decode_mask(counts, height, width)
    except (ValueError, TypeError, ArithmeticError) as error:
        assert "\n" not in str(error)
    else:
        assert mask.shape == (height, width) and mask.dtype == bool


@FUZZ
@given(st.data())
def test_the_text_cache(toyland_clip, tmp_path, data):
    bank = TextBank(toyland_clip, ["a {}"], tmp_path)
    bank.encode(["sea", "sky"])
    (file,) = (tmp_path / "text").iterdir()
    file.write_bytes(data.draw(broken([file.read_bytes()])))
    vectors = bank.encode(["sea", "sky"])
    assert vectors.shape == (2, toyland_clip.embed_dim) and bool(torch.isfinite(vectors).all())
    file.unlink()


VALUES = st.one_of(
    st.text(
        st.one_of(st.sampled_from("()[]{}'\"=,:.-+*\\0123456789e"), st.characters()), max_size=30
    ),
    st.sampled_from(["(" * 300, "{[]: 1}", "9" * 5000, "-x", "1+'a'"]),
)


@FUZZ
@given(st.lists(st.tuples(VALUES, VALUES).map("=".join), max_size=3), VALUES)
def test_options(pairs, spec):
    sound_or_told(lambda: parse_options(pairs, "--options"))
    sound_or_told(lambda: parse_spec(spec))


@FUZZ
@given(
    st.lists(
        st.one_of(
            VALUES,
            st.tuples(
                st.sampled_from(
                    ["model.method", "short_side", "settings", "model", "x.y", "test_dataloader"]
                ),
                VALUES,
            ).map("=".join),
        ),
        max_size=3,
    )
)
def test_overrides(tmp_path, pairs):
    config = pytest.importorskip("sfp.evaluation.config")
    file = tmp_path / "cfg_small.py"
    file.write_text(
        "model = dict(method='CLIP')\ntest_dataloader = "
        "dict(dataset=dict(pipeline=[]))\ntest_evaluator = dict()\n"
    )
    sound_or_told(lambda: config.read_config(file, pairs), tmp_path)
