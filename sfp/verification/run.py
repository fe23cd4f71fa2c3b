"""``sfp verify``: the steps in their order, the terminal's lines, and the two reports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from sfp.errors import SFPError
from sfp.files import only_one, sweep
from sfp.verification import STEPS
from sfp.verification.findings import FAILED, Record, impossible, verdict_of
from sfp.verification.given import Given
from sfp.verification.report import about, write_markdown
from sfp.verification.session import Session

_WITHOUT_WEIGHTS = "ab"


def verify(given: Given, steps: Sequence[str], fresh: bool = False) -> bool:
    """Do the steps, write ``verify.json`` and ``verified.md`` into the report's folder.

    Returns:
        Whether no part failed, of an earlier run's kept ones neither.

    Raises:
        SFPError: another process is at work there, or it can't be written.
    """
    with only_one(given.out, "--out"):
        sweep(given.out)
        record = Record(given.out, fresh)
        session = Session(given, record, tuple(steps))
        record.about = about(session, steps)
        for letter in steps:
            module, title = STEPS[letter]
            print(f"{letter}. {title}", flush=True)
            if letter not in _WITHOUT_WEIGHTS and (why := why_no_weights(session)):
                session.check(letter, "weights", lambda why=why: impossible(why))
                continue
            importlib.import_module(f"sfp.verification.{module}").run(session)
        record.take_over(session.common, steps)
        print()
        for letter, (_, title) in STEPS.items():
            own = [part for part in record.parts if part.step == letter]
            if own:
                found = verdict_of(own)
                print(f"{letter}. {title:<72} {found.verdict:<18} {found.words}")
        files = write_markdown(given.out, record)
        print(f"-> {record.path}, {files}", flush=True)
    sys.stdout.flush()
    return all(part.finding.verdict != FAILED for part in record.parts)


def why_no_weights(session: Session) -> str | None:
    """Why the weights that were given can't be had, None where they can."""
    try:
        session.clip()
    except SFPError as error:
        return str(error)
    return None
