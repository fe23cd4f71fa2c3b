"""Measure the figures of Toyland's first scenes on this machine's CPU, with which ``sfp verify``
compares other machines, and write them to sfp/verification/toyland_figures.csv.

python tools/dev/make_toyland_figures.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from sfp.errors import run_command
from sfp.files import whole_file
from sfp.plugin import require_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(make, parser.parse_args())


def make(args: argparse.Namespace) -> None:
    """Measure and write.

    Raises:
        SFPError: a method that can't be measured, or a file that can't be written.
    """
    require_mmseg()
    from sfp.verification.figures import TOYLAND, measured_toyland
    from sfp.verification.findings import Record
    from sfp.verification.given import Given
    from sfp.verification.session import Session

    lines = ["method,dataset,metric,value"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        session = Session(Given(out, model="Toyland", device="cpu"), Record(out))
        for name in tqdm(session.methods, unit="method"):
            value = measured_toyland(session, name, None).figures["mIoU"]
            lines.append(f"{name},toyland,mIoU,{value:.4f}")
    with whole_file(TOYLAND) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
