"""Rank the prompts of FLOSS: how surely each reads each class on unlabelled images.

Writes the file that the method FLOSS takes as ranking=FILE, keyed by the weights' fingerprint:
other weights' rankings in it stay. One holds for the base method, the prompts and the names of the
config. The images should be those of a training split;
labels are not read. The same command again goes on with an interrupted ranking.

python tools/rank_prompts.py configs/cfg_toyland.py --images 20 --out ranking.json
python tools/rank_prompts.py configs/cfg_voc20.py --images 500 --out ranking.json --cfg-options
model.base=MaskCLIP test_dataloader.dataset.ann_file=ImageSets/Segmentation/train.txt
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg
from sfp.progress import progress


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("config", help="a config file, such as configs/cfg_voc20.py")
    parser.add_argument(
        "--images", type=int, help="how many, spread over the dataset; all by default"
    )
    parser.add_argument("--out", type=Path, default=Path("prompt_ranking.json"), help="the file")
    add_config_options(parser, "model.base=MaskCLIP")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(rank, parser.parse_args())


def rank(args: argparse.Namespace) -> None:
    """Rank the prompts and write the file.

    Raises:
        SFPError: wrong arguments, config or data, or an interrupted ranking of something else.
    """
    require_mmseg()
    from sfp.evaluation.config import building, read_config
    from sfp.evaluation.dataset import build_dataset, check_names, short_name, spread_over
    from sfp.experiments.prompt_ranking import Journal, prompt_entropies, ranked
    from sfp.methods.floss import read_rankings
    from sfp.pipeline import Pipeline
    from sfp.segmentor import SFPSegmentor

    if args.images is not None and args.images < 1:
        raise SFPError(f"--images is {args.images}; give at least 1.")
    cfg = read_config(args.config, ["model.method=FLOSS", *args.cfg_options])
    rankings = read_rankings(args.out) if args.out.exists() else {}
    model = {key: value for key, value in cfg.model.items() if key not in ("type", "ranking")}
    dataset = build_dataset(cfg)
    with building("The model"):
        segmentor = SFPSegmentor(**model)
    method, vocabulary, text = segmentor.pipeline.method, segmentor.vocabulary, segmentor.task.text
    check_names(vocabulary, dataset.metainfo["classes"], type(dataset).__name__)
    base, bank = method.wrapped, segmentor.pipeline.text_bank
    pipeline = Pipeline(base, bank, segmentor.pipeline.protocol, model.get("windows_at_once"))
    chosen = spread_over(dataset, args.images or len(dataset))
    names = [short_name(dataset.get_data_info(index)["img_path"]) for index in chosen]
    run = {
        "weights_sha256": method.clip.fingerprint,
        "base": base.name,
        "options": {key: repr(value) for key, value in base.options().items()},
        "scale": method.fusion_scale,
        "protocol": repr(pipeline.protocol),
        "prompts": list(bank.prompts),
        "words": vocabulary.words,
        "images": names,
    }
    journal = Journal(args.out.with_name(f"{args.out.name}.images"), run)
    prompts = text.prompts().transpose(0, 1)
    for index, name in zip(progress(chosen, desc="ranking", unit="image"), names, strict=True):
        if name in journal.done:
            continue
        item = dataset[index]
        prepared = segmentor.data_preprocessor(
            dict(inputs=[item["inputs"]], data_samples=[item["data_samples"]])
        )
        (view,) = pipeline.views(prepared["inputs"])
        size = tuple(item["data_samples"].ori_shape[:2])
        journal.add(name, *prompt_entropies(pipeline, view, text, prompts, size, run["scale"]))
    found = {**run, "images": len(names), "dataset": type(dataset).__name__}
    found["classes"] = ranked(*journal.total(), vocabulary.names)
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps({**rankings, method.clip.fingerprint: found}) + "\n")
    journal.file.unlink()
    print(f"{args.out}: {len(bank.prompts)} prompts, {len(names)} images, base {base.name}")


if __name__ == "__main__":
    sys.exit(main())
