"""Delimited text, JSON lines and Parquet as data frames, .npy as arrays, with errors that name file and row."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fedray.errors import EmptyFileError, EncodingError, FileFormatError, MissingPathError

ID_COLUMNS = ("user", "item")


def read_utf8(file: Path) -> bytes:
    """The bytes of a UTF-8 file. Raises `EncodingError` with the line, `EmptyFileError`."""
    body = read_bytes(file)
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise EncodingError(
            f"byte {body[error.start]:#04x} is not UTF-8",
            "UTF-8 text",
            "Save the file as UTF-8, for instance: iconv -f latin1 -t utf-8.",
            f"{file}, row {line}",
        ) from error
    return body


def read_lenient(file: Path) -> bytes:
    """UTF-8 with U+FFFD in place of what is not: for texts that are judged one by one later, never for ids."""
    return read_bytes(file).decode("utf-8", "replace").encode()


def read_bytes(file: Path) -> bytes:
    """The bytes of a file that must hold something."""
    if not file.is_file():
        raise MissingPathError(f"{file} does not exist", "a file", "Check data.path.")
    try:
        body = file.read_bytes()
    except OSError as error:
        raise FileFormatError(f"not readable: {error.strerror}", "a readable file", "", str(file)) from error
    if not body.strip():
        raise EmptyFileError("the file is empty", "at least one row", "", str(file))
    return body


def delimited(
    body: bytes,
    where: str,
    names: tuple[str, ...] = (),
    delimiter: str = ",",
    text: tuple[str, ...] = ID_COLUMNS,
    quotes: bool = True,
) -> pd.DataFrame:
    """Rows of delimited text; the index is the line number. Columns in `text` stay text, others as they look.

    `names` are the columns of a file without a header line. Raises `FileFormatError`, `EmptyFileError`.
    """
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(body),
            read_options=pa.csv.ReadOptions(
                use_threads=False, column_names=list(names) or None, block_size=_block_size(body)
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes
            ),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
        )
    except pa.ArrowException as error:
        raise _ragged(body, where, len(names), delimiter, quotes) from error
    frame = _frame(table, where)
    return frame.set_axis(_lines(body, len(frame), 0 if names else 1), axis="index")


def _block_size(body: bytes) -> int:
    """The whole file at once where it may be: a row longer than a block is refused by the parser."""
    return min(max(len(body), 1 << 20), 1 << 30)


def _frame(table: Any, where: str) -> pd.DataFrame:
    """Arrow to pandas; 64-bit integers stay exact beside missing values, days become times."""
    seen = table.column_names
    twice = sorted({name for name in seen if seen.count(name) > 1})
    if twice:
        raise FileFormatError(f"column {twice[0]!r} is given twice", "each column once", "", where)
    if not table.num_rows:
        raise EmptyFileError("there is no row", "at least one row", "", where)
    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, date_as_object=False, ignore_metadata=True)


def _lines(body: bytes, n_rows: int, header: int) -> np.ndarray:
    """The line each row stands on; blank lines are skipped, a quoted line break is not accounted for."""
    plain = np.arange(1 + header, n_rows + 1 + header)
    if b"\n\n" not in body and b"\n\r\n" not in body and body[:1] not in b"\r\n":
        return plain
    full = np.array([i for i, line in enumerate(body.splitlines(), 1) if line])[header:]
    return full if len(full) == n_rows else plain


def _ragged(body: bytes, where: str, width: int, delimiter: str, quotes: bool) -> FileFormatError:
    """The error for the first row whose number of fields is not that of the header."""
    lines = io.StringIO(body.decode("utf-8"), newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                found, place = f"{len(row)} fields: {delimiter.join(row)[:60]!r}", f"{where}, row {reader.line_num}"
                return FileFormatError(found, f"{width} fields", "Mend or remove the row.", place)
    except csv.Error as error:
        return FileFormatError(f"{error}", "delimited text", "Check the quotes.", f"{where}, row {reader.line_num}")
    return FileFormatError("the rows cannot be told apart", "delimited text", "Check the quotes.", where)


def read_parquet(file: Path) -> pd.DataFrame:
    """A Parquet file; the index counts rows from 1. Raises `FileFormatError`, `EmptyFileError`."""
    try:
        table = pa.parquet.read_table(pa.BufferReader(read_bytes(file)))
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(f"not readable: {error}", "a Parquet file", "", str(file)) from error
    frame = _frame(table, str(file))
    return frame.set_axis(np.arange(1, len(frame) + 1), axis="index")


def read_json_lines(body: bytes, file: Path) -> pd.DataFrame:
    """One JSON object a line; the index is the line number. Raises `FileFormatError`."""
    lines = enumerate(body.decode("utf-8-sig").split("\n"), 1)
    rows = {number: _json_object(line, f"{file}, row {number}") for number, line in lines if line.strip()}
    return pd.DataFrame(list(rows.values()), index=list(rows))


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not JSON: {error}", "one JSON object a line", "", where) from error
    if not isinstance(row, dict):
        raise FileFormatError(f"holds {type(row).__name__}", "a JSON object", "", where)
    return {_whole(k): _whole(v) for k, v in row.items()}


_HALVES = re.compile("[\ud800-\udfff]")


def _whole(value: Any) -> Any:
    """JSON lets half a character through (`\\ud83d` alone), which no table can hold: it becomes U+FFFD."""
    if isinstance(value, str):
        return _HALVES.sub("\N{REPLACEMENT CHARACTER}", value)
    return [_whole(v) for v in value] if isinstance(value, list) else value


def read_npy(file: Path) -> np.ndarray:
    """The one array of a .npy file; pickles are not read. Raises `FileFormatError`."""
    try:
        table = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"not readable: {error}", "a .npy array of numbers", "", str(file)) from error
    if not isinstance(table, np.ndarray):
        raise FileFormatError("an archive of arrays", "one array", "Save it with numpy.save.", str(file))
    return table
