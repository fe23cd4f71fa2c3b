"""Run the notebooks and store them with their outputs, whose pictures get 128 colours at most.

python tools/dev/run_notebooks.py
python tools/dev/run_notebooks.py notebooks/colab.ipynb
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from sfp.errors import SFPError, run_command
from sfp.files import whole_file

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="all of notebooks/ if none is given")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(run, parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Run each notebook in an empty folder and write it back.

    Raises:
        SFPError: a cell fails, or warns.
    """
    for file in args.files or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = executed(file)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    raise SFPError(f"{file}, cell {cell['id']} warns: {output['text'][:300]}")
                if png := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = fewer_colours(png)
                    output.data.pop("image/jpeg", None)  # Pillow gives both
        with whole_file(file) as partial:
            nbformat.write(notebook, partial)
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


def executed(file: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; its own metadata stay.

    Raises:
        SFPError: a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    kept = dict(notebook.metadata)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, without ipywidgets
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            raise SFPError(f"{file} can't be run ({error.ename}: {error.evalue}).") from error
    notebook.metadata = nbformat.from_dict(kept)
    return notebook


def fewer_colours(png: str) -> str:
    """A picture in base64 as one with a palette."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


if __name__ == "__main__":
    sys.exit(main())
