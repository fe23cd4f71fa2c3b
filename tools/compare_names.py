"""The same images under other class names: how far the names alone move a number.

Each vocabulary is scored in the same pass of the images: the config's own names, "official"; the
first word of each class, "plain", where these have synonyms; those of further files; and the
official ones with distractors, which are words that are no class of the dataset: a pixel that goes
to one is wrong. Two figures stand side by side: mIoU over all classes of the dataset that occur in
labels or predictions, and over those that the labels of the measured images have.

python tools/compare_names.py configs/cfg_toyland.py --images 20 --names
synonyms=configs/cls_toyland_synonyms.txt
python tools/compare_names.py configs/cfg_voc20.py --names plain=configs/cls_voc20_plain.txt
sclip=configs/cls_voc20_sclip.txt \\
    --distractors configs/cls_ade20k.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfp.errors import SFPError, run_command
from sfp.evaluation.counts import Figures, sum_counts
from sfp.evaluation.markdown import markdown_table
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument(
        "config",
        help="a config file, such as configs/cfg_toyland.py; its own names are the row official",
    )
    parser.add_argument(
        "--names",
        nargs="*",
        default=[],
        metavar="LABEL=FILE",
        help="further names files with one line for each class",
    )
    parser.add_argument(
        "--distractors",
        type=Path,
        help="a names file whose words are added to the official names as distractors",
    )
    parser.add_argument("--methods", nargs="+", help="methods; the config's own if not given")
    parser.add_argument(
        "--images", type=int, help="how many images, spread over the dataset; all if not given"
    )
    add_config_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(compare, parser.parse_args())


def compare(args: argparse.Namespace) -> None:
    """Print a table for each method.

    Raises:
        SFPError: wrong arguments, config, names or data.
    """
    require_mmseg()
    from mmseg.registry import MODELS

    from sfp.evaluation.config import building, read_config, read_protocol
    from sfp.evaluation.dataset import build_dataset, check_task, image_names, spread_over
    from sfp.evaluation.loop import Part, evaluate
    from sfp.evaluation.metric import check_metric
    from sfp.pipeline import Task

    if args.images is not None and args.images < 1:
        raise SFPError(f"--images is {args.images}; give at least 1.")
    for method in args.methods or [None]:
        chosen_method = [f"model.method={method}"] if method else []
        cfg = read_config(args.config, [*chosen_method, *args.cfg_options])
        vocabularies = read_vocabularies(cfg, args.names, args.distractors)
        dataset, protocol = build_dataset(cfg), read_protocol(cfg.model)
        check_metric(cfg, dataset)
        for label, (vocabulary, added) in vocabularies.items():
            if not added:
                check_task(vocabulary, protocol, dataset, f"The vocabulary {label!r}")
        with building("The model"):
            model = MODELS.build(cfg.model)
        names = image_names(dataset)
        chosen = [names[index] for index in spread_over(dataset, args.images or len(dataset))]
        parts = []
        for vocabulary, _ in vocabularies.values():
            task = Task(model.pipeline.encode_text(vocabulary), protocol)
            parts.append(Part(dataset, task, vocabulary.names, chosen))
        evaluate(model, parts)
        counts = [list(part.counts.values()) for part in parts]
        name, images = model.pipeline.method.name, f"{len(chosen)} images"
        print(f"{name}, {model.frozen.name}, {images} of {type(dataset).__name__}\n")
        print(table(vocabularies, counts, len(dataset.metainfo["classes"])))


def read_vocabularies(cfg, files: Sequence[str], distractors: Path | None) -> dict:
    """By label a vocabulary and how many of its last classes are distractors: "official"; "plain",
    the first word of each class, where official classes have several; those of files; and official
    with distractors.

    Raises:
        SFPError: a file that isn't LABEL=FILE, a label that stands twice, or bad names.
    """
    from sfp.evaluation.config import read_vocabulary
    from sfp.pipeline import Vocabulary

    separator = cfg.model.get("name_separator", ", ")
    official = read_vocabulary(cfg.model)
    found = {"official": (official, 0)}
    if len(official.queries) > len(official.names):
        found["plain"] = Vocabulary.from_names(official.names), 0
    for text in files:
        label, _, path = text.partition("=")
        if not path or not label or label in found:
            raise SFPError(
                f"--names got {text!r}; give LABEL=FILE, with another label for each file than "
                f"{', '.join(found)}."
            )
        found[label] = Vocabulary.from_file(path, separator), 0
    if distractors:
        words = [
            word
            for word in Vocabulary.from_file(distractors, separator).names
            if word not in official.queries
        ]
        if not words:
            raise SFPError(
                f"All names of {distractors} are the dataset's own; give --distractors a file "
                f"with other words."
            )
        found[f"official + {len(words)} distractors"] = (
            Vocabulary.from_names([*official.words, *words]),
            len(words),
        )
    return found


def table(vocabularies: dict, counts: Sequence[Sequence[np.ndarray]], classes: int) -> str:
    """Markdown.

    Each vocabulary's mIoU over all classes and over those present, the change, and what goes to
    distractors.
    """
    head = [
        "names",
        "#queries",
        "#mIoU, all classes",
        "#change",
        "#mIoU, classes present",
        "#change",
        "#pixels lost to distractors",
    ]
    body = []
    first: tuple[float, float] | None = None
    for (label, (vocabulary, added)), own in zip(vocabularies.items(), counts, strict=True):
        total = sum_counts(own, len(vocabulary.names))
        figures = Figures.of(total[:, :classes])  # a distractor's own IoU, 0, is no class's
        pair = figures.mIoU, figures.mIoU_present
        first = first or pair
        changes = [
            "" if pair is first else f"{value - start:+.1f}"
            for value, start in zip(pair, first, strict=True)
        ]
        lost = f"{100 * total[1, classes:].sum() / total[1].sum():.1f} %" if added else ""
        figures_of = [
            text
            for value, change in zip(pair, changes, strict=True)
            for text in (f"{value:.1f}", change)
        ]
        body.append([label, str(len(vocabulary.queries)), *figures_of, lost])
    return markdown_table(head, body)


if __name__ == "__main__":
    sys.exit(main())
