"""Names as people give them: as text, as a class list in a file, as a list that is shipped.

Nothing here imports torch: a program refuses wrong names at once.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sfp.errors import SFPError
from sfp.files import CONFIGS

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_TEXTS = (".txt", ".text", ".csv", ".tsv")
BACKGROUND = "background"
FEW = 5
_SEPARATORS = {"ade847": "; "}  # of lists whose names have commas, as their configs say
_RANKED = frozenset({"FLOSS"})  # methods with a ranking of prompts for each name
_MANY = 10  # words of one class: a background's
_MOST_BYTES = 1 << 20  # of a class list; the longest that is shipped has 12 kB

# What SFP's and SCLIP's repositories ask for as VOC's background. After "|" stand words of the same
# things: they are not asked for, but who asks for one of a row wants none of it in the background.
_STUFF = """
sky, cloud | heaven, heavens
wall
tree, wood | forest, woods, plant, bush, palm
grass | lawn, meadow, field
road | street, path, pavement, tarmac, asphalt, highway
sea, river | ocean, water, lake, pond
mountain, hill | rock, cliff
sands | beach, dune
desk | table
bed
building | house, home, skyscraper, tower
lamp | light
door
window
wardrobe | cupboard, closet, cabinet
ceiling
shelf | bookcase, bookshelf, shelves
curtain | blind
stair | steps, staircase
floor | ground, carpet, rug
rail | track, railway
fence
"""


def parse_names(text: str) -> list[str | list[str]]:
    """ "cat, sofa" or "cat; sofa, couch" (with synonyms) as a list of names."""
    if ";" in text:
        return [[word.strip() for word in group.split(",")] for group in text.split(";")]
    return [word.strip() for word in text.split(",")]


def read_names(text: str) -> tuple[list[list[str]], str]:
    """Names as a command line gives them, and where they come from: "" where they are typed.

    The name of a shipped list, such as "ade20k", stands for it. A file is read where the text is
    the path of one with an ending or a folder, and where it ends like a text or a picture. All else
    is read by ``parse_names``: a word stays one though a file is called so.

    A list of a dataset with a background has a first class of many words; it is called background.

    Raises:
        SFPError: what ``read_class_list`` and ``check_names`` refuse.
    """
    lists = shipped_lists()
    path = lists.get(text.strip().lower())
    ending = Path(text).suffix.lower()
    if path is None and (
        (os.path.isfile(text) and (ending or os.path.dirname(text)))
        or (ending in (*_TEXTS, *PICTURES) and "," not in text)
    ):
        path = Path(text)
    if path is None:
        return check_names(parse_names(text), "The list of names"), ""
    shipped = next((name for name, file in lists.items() if file == path.resolve()), None)
    separator = _SEPARATORS.get(shipped, ", ") if shipped else ","  # spaces go with check_names
    names = check_names(read_class_list(path, separator), f"The names file {path}")
    if shipped and len(names[0]) > _MANY and names[0][0] != BACKGROUND:
        names[0].insert(0, BACKGROUND)
    return names, str(path)


def shipped_lists() -> dict[str, Path]:
    """The class lists that come with the package, by name: ``configs/cls_<name>.txt``."""
    files = sorted(CONFIGS.glob("cls_*.txt"))
    return {file.stem.removeprefix("cls_"): file for file in files}


def usual_background(
    names: Sequence[Sequence[str]], methods: Iterable[str] = ()
) -> list[str] | None:
    """Words of what lies around things, "background" first; None for more than five names, and
    where one of the methods takes no other names than those of a table of its own.

    CLIP gives every pixel to one of the names that are asked for, so that a single one gets all of
    them. Stuff that is among the names, or the last word of one, is left out; and so is all where a
    name is "background" already.
    """
    asked = {_stem(word) for group in names for word in group}
    asked |= {word.rpartition(" ")[2] for word in asked}
    if len(names) > FEW or BACKGROUND in asked or not _RANKED.isdisjoint(methods):
        return None
    words = [BACKGROUND]
    for row in _STUFF.strip().splitlines():
        own, _, others = row.partition("|")
        own, others = ([word.strip() for word in part.split(",")] for part in (own, others))
        if asked.isdisjoint(map(_stem, [*own, *others])):
            words += own
    return words


def _stem(word: str) -> str:
    return word.strip().lower().removesuffix("s")


def read_class_list(path: str | os.PathLike, separator: str = ", ") -> list[list[str]]:
    """The classes of a file in UTF-8, with or without a byte order mark: one class per line,
    synonyms between separators.

    Raises:
        SFPError: no such file, not text, over 1 MiB, or no separator.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(separator, str) or not separator:
        raise SFPError(
            f"The names file is {path!r} with the separator {separator!r}; give name_path a "
            f"path and name_separator a text."
        )
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SFPError(
                f"The names file {path} has over {_MOST_BYTES >> 20} MiB; give a text with one"
                " class per line."
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SFPError(
            f"There is no names file {path}; give one with one class per line"
            " (config: model.name_path)."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SFPError(
            f"The names file {path} can't be read ({error}); it must be UTF-8 text with one "
            f"class per line."
        ) from error
    lines = text.rstrip("\n").split("\n") if text.strip() else []
    return [line.split(separator) for line in lines]


def check_names(
    names: Sequence[str | Sequence[str]], source: str = "The list of names"
) -> list[list[str]]:
    """Names, each a word or a list of synonyms, as lists of words without spaces around them.

    Raises:
        SFPError: no names, one that is empty, no text or has control characters, or one that
            stands twice.
    """
    if isinstance(names, str) or not isinstance(names, (Sequence, np.ndarray)):
        shown = (
            f"the single text {names!r}" if isinstance(names, str) else f"a {type(names).__name__}"
        )
        raise SFPError(f"{source} is {shown}; give a list of names such as ['cat', 'sofa'].")
    groups = [
        [name] if isinstance(name, str) or not isinstance(name, Sequence) else list(name)
        for name in names
    ]
    if not groups:
        raise SFPError(f"{source} has no names; give at least one.")
    for number, group in enumerate(groups, start=1):
        for word in group or [""]:
            _check_word(word, source, number)
    groups = [[word.strip() for word in group] for group in groups]
    for number, group in enumerate(groups, start=1):
        if word := _repeated(group):
            raise SFPError(f"{source} names {word!r} twice at place {number}; keep it once.")
    firsts = [group[0] for group in groups]
    if word := _repeated(firsts):
        places = [str(i) for i, first in enumerate(firsts, start=1) if reading(first) == word]
        raise SFPError(
            f"{source} has the duplicate name {word!r} at places {', '.join(places)}; keep it once."
        )
    return groups


def _repeated(words: Iterable[str]) -> str | None:
    """The first reading that comes again."""
    seen: set[str] = set()
    for word in map(reading, words):
        if word in seen:
            return word
        seen.add(word)
    return None


def reading(word: str) -> str:
    """What a name is compared by: words of one reading are one name.

    CLIP's tokenizer cleans a text first (ftfy with NFC, HTML's signs, spaces, small letters): what
    is equal then gives equal vectors. NFKC joins besides what differs in form alone, such as m²
    and m2, and signs that nobody sees are left out: two such classes would be a mistake.
    """
    if word.isascii() and word.isprintable() and "&" not in word:  # nothing of this happens to it
        return " ".join(word.lower().split())
    from open_clip.tokenizer import get_clean_fn

    text = unicodedata.normalize("NFKC", get_clean_fn("lower")(word)).casefold()
    seen = (c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return " ".join("".join(seen).split())


def _check_word(word: object, source: str, place: int) -> None:
    """Raises SFPError for what is no readable word."""
    if not isinstance(word, str):
        raise SFPError(
            f"{source} has {word!r} at place {place}; write a text there, or a list of synonyms."
        )
    if all(unicodedata.category(character)[0] in "ZC" for character in word):
        raise SFPError(
            f"{source} has an empty name at place {place}; write a word there or take the place "
            f"out."
        )
    strange = [
        c for c in word.strip() if unicodedata.category(c) in ("Cc", "Cs") or c in "\ufeff\u200b"
    ]
    if strange:
        raise SFPError(
            f"{source} has the character U+{ord(strange[0]):04X} in the name {word!r} at place "
            f"{place}; take it out."
        )
