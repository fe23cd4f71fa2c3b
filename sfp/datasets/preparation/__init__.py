"""From what the datasets' owners ship to the layout that mmsegmentation reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sfp.datasets.layouts import find_layout, unfinished_marker
from sfp.datasets.preparation.download import fetch
from sfp.datasets.preparation.recipes import RECIPES
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import carry_out, record_sources
from sfp.errors import SFPError
from sfp.files import only_one, whole_file

__all__ = ["RECIPES", "prepare"]


def prepare(
    name: str,
    source: Sequence[Path],
    out: Path,
    workers: int = 1,
    download: bool = False,
    mirror: str | None = None,
) -> tuple[Path, int]:
    """Prepare a dataset. The sources are only read; files that were finished before are kept, if
    they are of the same sources.

    Args:
        name: of the dataset, as in ``configs/cfg_<name>.py``.
        source: folders, files and archives of the owners.
        out: the data root.
        workers: processes.
        download: fetch the owners' archives into ``out/downloads`` first.
        mirror: an address that has these archives, instead of the owners'.

    Returns:
        The dataset's folder and how many validation images it has.

    Raises:
        SFPError: an unknown name, a fault in the source, another source than that of the files
            that are there, a failed download, or an ``out`` that can't be written.
    """
    layout = find_layout(name)
    recipe, root, unpacked = RECIPES[name], out / layout.root, out / f".unpacked_{name}"
    if download and not recipe.archives:
        raise SFPError(
            f"{name} can't be downloaded by a program; it needs {recipe.obtain}: give them with "
            "--source."
        )
    if not source and not download:
        raise SFPError(f"There is no source: {name} needs {recipe.obtain}.")
    try:
        with only_one(out, "--out", f".{layout.root.replace('/', '_')}.lock"):
            archives = recipe.archives if download else ()
            fetched = [fetch(archive, out / "downloads", mirror) for archive in archives]
            plan = recipe.plan(Sources([*source, *fetched], unpacked, recipe.needed), root, layout)
            root.mkdir(parents=True, exist_ok=True)
            record_sources(plan, root, name)
            marker = unfinished_marker(layout, root)
            with whole_file(marker) as partial:
                partial.write_text(
                    f"Preparing {name} has begun and not ended; run sfp prepare again.\n"
                )
            carry_out(plan, workers, f"preparing {name}")
            marker.unlink()
            if unpacked.is_dir():
                shutil.rmtree(unpacked)  # what is used as it is lives on by its hard link
    except OSError as error:
        raise SFPError(
            f"Preparing {name} under {out} failed ({error}); correct that, or choose another "
            "folder with --out."
        ) from error
    return root, plan.images
