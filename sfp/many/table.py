"""Pictures in Parquet tables, by PyArrow (the extra ``ray``)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sfp.errors import SFPError

_PICTURES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "data", "content")
_FILES = ("path", "file", "file_name", "filename", "image_path", "image")
_KEYS = ("key", "__key__", "id", "file_name", "filename", "path")


def _parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SFPError(
            f"Parquet is read by PyArrow, which can't be imported ({error}); pip install pyarrow."
        ) from error
    return pyarrow.parquet


def _open(file: str) -> Any:
    parquet = _parquet()
    try:
        return parquet.ParquetFile(file)
    except Exception as error:  # Arrow's and the system's
        reason = str(error).strip().splitlines()[0][:160]
        raise SFPError(
            f"{file} can't be read as a Parquet table ({reason}); give a whole one."
        ) from error


def rows(file: str) -> Iterator[tuple[str, int, int, str, str]]:
    """For each row: the column of its picture, its row group, its number there, its name, and the
    picture's file where the table has only that.

    A picture is a column of bytes, or of structs of ``bytes`` and ``path`` as Hugging Face's
    datasets have it, or of paths.

    Raises:
        SFPError: the table can't be read, or has no pictures.
    """
    import pyarrow as pa

    table = _open(file)
    types = {field.name: field.type for field in table.schema_arrow}
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    text = (pa.types.is_string, pa.types.is_large_string)

    def first(names: tuple[str, ...], kinds: tuple) -> str:
        return next((n for n in names if n in types and any(k(types[n]) for k in kinds)), "")

    structs = [
        name
        for name, kind in types.items()
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ]
    own = structs[0] if structs else first(_PICTURES, binary)
    paths = "" if own else first(_FILES, text)
    if not own and not paths:
        raise SFPError(
            f"{file} has no pictures: of its columns {', '.join(types)} none is of bytes or paths"
            f" named {', '.join(dict.fromkeys((*_PICTURES, *_FILES)))}; rename one."
        )
    key = first(_KEYS, text)
    inner = f"{own}.path" if structs and types[own].get_field_index("path") >= 0 else ""
    columns = [name for name in (key, paths, inner) if name]
    for group in range(table.num_row_groups):
        found = table.read_row_group(group, columns=columns) if columns else None
        named = found.column(key).to_pylist() if key else None
        files = found.column(paths).to_pylist() if paths else None
        if not key and inner:
            named = [each and each.get("path") for each in found.column(own).to_pylist()]
        for row in range(table.metadata.row_group(group).num_rows):
            name = named[row] if named else None
            yield own, group, row, str(name) if name else "", (files[row] or "") if files else ""


class TableReader:
    """Keeps the row group that was read last."""

    def __init__(self, file: str):
        self.file, self.table = file, _open(file)
        self.kept: tuple[str, int] | None = None
        self.column: Any = None

    def read(self, column: str, group: int, row: int) -> bytes:
        """The bytes of a picture.

        Raises:
            SFPError: the row has none.
        """
        if self.kept != (column, group):
            self.column = self.table.read_row_group(group, columns=[column]).column(column)
            self.kept = (column, group)
        value = self.column[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise SFPError(f"Row {row} of group {group} of {self.file} has no picture.")
        return data
