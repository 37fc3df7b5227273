"""The documents of one file: pyarrow reads the tables, the standard library all else, and no text is changed."""

import codecs
import csv
import io
import itertools
import json
import re
import sys

from fsspec.compression import compr

from blockwise import UserError

ROWS = 256  # of a parquet file at a time: a whole group of them may be gigabytes
FORMS = ("parquet", "jsonl", "ndjson", "json", "arrow", "csv", "tsv", "txt")
PACKED = {"gz": "gzip", "gzip": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd", "zstd": "zstd"}
NAME = re.compile(rf"\.({'|'.join(FORMS)})(?:\.({'|'.join(PACKED)}))?$", re.IGNORECASE)
EXPECTED = "expected .parquet, .jsonl, .json, .ndjson, .txt, .csv, .tsv or .arrow files (also .gz, .bz2, .xz, .zst)"


def form_of(name):
    """("jsonl", "gz") of "x.JSONL.gz", ("jsonl", None) of "x.jsonl", None where the name states no form."""
    ending = NAME.search(str(name))
    return (ending[1].lower(), ending[2] and ending[2].lower()) if ending else None


def documents(path, name, column, start=0):
    """(row, text, None), or (row, None, what is wrong with the row), of the rows after the first `start`.

    path: where the file lies; name: what it is called, whose ending states the form, as of links to hashes.
    Raises UserError, naming the file, for what is wrong with all of it: another form, no such column.
    """
    form, packed = form_of(name)
    try:
        with open(path, "rb") as raw, io.BufferedReader(compr[PACKED.get(packed)](raw, mode="rb")) as file:
            texts = texts_in(file, form, path, column)
            yield from ((row, *text) for row, text in itertools.islice(enumerate(texts, 1), start, None))
    except UserError:
        raise
    except Exception as error:  # of any of the libraries that unpack
        raise UserError(f"{path} cannot be read: {error}") from None


def texts_in(file, form, path, column):
    """(text, None) or (None, problem) of every row of an open file."""
    if form == "txt":
        return [text_of(file, path)]
    if form in ("csv", "tsv"):
        return csv_texts(file, path, column, "\t" if form == "tsv" else ",")
    if form in ("parquet", "arrow"):
        return table_texts(file, form, path, column)
    over_lines = form == "json" and re.match(rb"\s*(\[|\{\s*\n)", file.peek(100).removeprefix(codecs.BOM_UTF8))
    records = json_items(file, path) if over_lines else json_lines(file, path)
    return ((None, problem) if problem else text_in(record, column, place) for place, record, problem in records)


def text_of(file, path):
    """A text file is one document, its line ends as they are."""
    text, problem = decoded(file.read(), path)
    return text and text.removeprefix("\ufeff").replace("\n\ufeff", "\n"), problem


def csv_texts(file, path, column, delimiter):
    """Raises UserError for stray quotes: a lenient reader joins the lines up to the next one."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise lacks_column(path, column, header)
        at = header.index(column)
        for i, row in enumerate(filter(None, rows), 1):
            problem = f"{path}, row {i}: {len(row)} fields, the first line names {len(header)}"
            yield (row[at], None) if len(row) == len(header) else (None, problem)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {rows.line_num}: a quote that does not enclose a field ({error}) would join lines: "
            "expected quotes doubled inside of quoted fields, or .jsonl"
        ) from None


def lacks_column(path, column, columns):
    names = ", ".join(columns)
    return UserError(f"{path} has no column {column}: its columns are {names}; --text_column=NAME names it")


def table_texts(file, form, path, column):
    import pyarrow

    row = 0
    for batch in record_batches(file, form, column):
        for data in text_column(pyarrow.Table.from_batches([batch]), column, path):
            row += 1
            yield decoded(data, f"{path}, row {row}")


def record_batches(file, form, column):
    """The rows of a table; of a parquet file only the column, since others may be large."""
    import pyarrow
    from pyarrow import parquet

    if form == "parquet":
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        top = column if column in names else column.partition(".")[0]
        return table.iter_batches(ROWS, columns=[top] if top in names else None)
    try:
        return pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        table = pyarrow.ipc.open_file(file)
        return map(table.get_batch, range(table.num_record_batches))


def column_in(table, column):
    """The column of that name, or of that path into nested columns; None if there is none."""
    if column in table.column_names:
        return table[column]
    first, _, rest = column.partition(".")
    nested = table.select([first]).flatten() if rest and first in table.column_names else None
    if nested is None or nested.column_names == [first]:
        return None
    return column_in(nested.rename_columns([name[len(first) + 1 :] for name in nested.column_names]), rest)


def is_text(kind):
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_string_view)
    return any(test(kind) for test in tests)


def text_column(table, column, path):
    """The texts of a table as bytes or None. Raises UserError where the column is missing or holds something else."""
    import pyarrow

    values = column_in(table, column)
    if values is None:
        raise lacks_column(path, column, table.column_names)
    if pyarrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not is_text(values.type):
        raise UserError(f"{path}: expected a column of text, {column} is of type {values.type}")
    return values.cast(pyarrow.large_binary()).to_pylist()


def decoded(data, place):
    """(text, None) or (None, problem)."""
    if data is None:
        return None, f"{place}: no text"
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        return None, f"{place}: not UTF-8 text: {error.reason} at byte {error.start}"


def json_lines(file, path):
    """(place, value, problem) of every line that is not blank."""
    for number, line in enumerate(file, 1):
        place, line = f"{path}, line {number}", line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            text, problem = decoded(line, place)
            try:
                yield place, None if problem else json.loads(text), problem
            except (ValueError, RecursionError) as error:
                yield place, None, f"{place}: not JSON: {error}"


def json_items(file, path):
    """(place, value, None) of the items of a list, or of objects that are laid out over several lines each."""
    items, white = [], re.compile(r"\s*")
    try:
        text = file.read().decode("utf-8-sig")
        at = white.match(text).end()
        while at < len(text):
            value, end = json.JSONDecoder().raw_decode(text, at)
            items += value if isinstance(value, list) else [value]
            at = white.match(text, end).end()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    return ((f"{path}, item {i}", item, None) for i, item in enumerate(items, 1))


def text_in(record, column, place):
    """(text, None) or (None, problem) of a JSON object."""
    if not isinstance(record, dict):
        return None, f"{place}: expected a JSON object with a text"
    text, path = record, [column] if column in record else column.split(".")
    for key in path:
        if not isinstance(text, dict) or key not in text:
            columns = ", ".join(record)
            what = "no text" if column == "text" else f"no {column}"
            return None, f"{place}: {what}: its columns are {columns}; --text_column=NAME names it"
        text = text[key]
    if not isinstance(text, str):
        return None, f"{place}: expected text as a string, got {type(text).__name__}"
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        return None, f"{place}: not UTF-8 text: half of a surrogate pair"
    return text, None
