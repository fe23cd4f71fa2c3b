"""The page as a Space of Hugging Face, from the wheel that lies beside this file.

The variable MODEL of the Space's settings names the CLIP that is loaded at the start: ViT-B/16
unless it is set, fetched from the hub; Toyland needs nothing. Options of ``sfp page`` may follow:
python app.py --host 127.0.0.1 --port 8000
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# where a Space is looked at; another server or port can follow on the command line
USUAL = ["--host", "0.0.0.0", "--port", "7860", "--embed-in", "https://huggingface.co"]


def wheel_beside() -> Path:
    """The wheel in this file's folder; ends the program with a sentence where there is none."""
    folder = Path(__file__).resolve().parent
    wheels = sorted(folder.glob("sfp_ovss-*.whl"))
    if len(wheels) != 1:
        sys.exit(
            f"error: {len(wheels)} wheels lie in {folder}; put one beside app.py, made in the"
            " repository by: pip wheel --no-deps -w scripts/space ."
        )
    return wheels[0]


if __name__ == "__main__":
    # requirements.txt is installed before the wheel is there, and has all that it needs
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    with tempfile.TemporaryDirectory(prefix="sfp-space-") as place:
        subprocess.run([*pip, "--target", place, wheel_beside()], check=True)
        sys.path.insert(0, place)
        from sfp.commands.page import main

        model = os.environ.get("MODEL", "ViT-B/16")
        code = main([*USUAL, "--model", model, *sys.argv[1:]])
    sys.exit(code)
