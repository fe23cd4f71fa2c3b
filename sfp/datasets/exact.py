"""Whether reading a picture's file leaves its values and its orientation as they are."""

from __future__ import annotations

from PIL import Image

# what Pillow calls the pixels of a file; others, such as "L;4" of grey with four bits and "L;I" of
# grey from white to black, are stretched or turned round when they are read
_EXACT = {"1", "L", "P", "P;1", "P;2", "P;4", "I;16", "I;16B", "I;16N", "I;16L"}
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_LOSSY = ("jpeg", "webp", "jp2", "lerc")
_ORIENTATION = 0x0112


def why_inexact(label: Image.Image) -> str | None:
    """What keeps an opened, not yet read file from holding labels exactly, None where nothing does.

    Half a sentence, which goes on after "The label FILE".
    """
    if label.format not in ("PNG", "TIFF"):
        return f"is a {label.format} inside, which changes labels"
    if label.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        return (
            f"has colours ({label.mode}) instead of labels, which must be indices, with or "
            "without palette"
        )
    if any(word in str(label.info.get("compression", "")).lower() for word in _LOSSY):
        return f"is packed by {label.info['compression']}, which changes labels"
    for *_, arguments in label.tile:
        kind = arguments if isinstance(arguments, str) else arguments[0]
        if kind not in _EXACT:
            return f"has grey of the kind {kind}, whose values change when they are read"
    return None


def turned_by(image: Image.Image) -> str | None:
    """Half a sentence on the EXIF orientation that turns an image when it is read, or None."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))  # image.getexif() would decode all of a PNG
    orientation = exif.get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        return (
            f"has the EXIF orientation {orientation}, by which the image is turned when it is "
            "read and its label is not"
        )
    return None
