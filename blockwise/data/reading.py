"""The documents of one file. `datasets` unpacks and parses it; what it lacks is here, each with its reason."""

import codecs
import csv
import io
import json
import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from blockwise import UserError

# Rows of a table at a time: a whole group of rows of a parquet file may be gigabytes
ROWS = 256
JSON = ("json", {"on_mixed_types": None, "parse_agent_traces": False})  # else a text may come back as JSON of a text
CSV = {"keep_default_na": False}  # "NA" is a text
FORMS = {
    "parquet": ("parquet", {"batch_size": ROWS}), "jsonl": JSON, "ndjson": JSON, "json": JSON, "arrow": ("arrow", {}),
    "csv": ("csv", CSV), "tsv": ("csv", {**CSV, "sep": "\t"}), "txt": None,
}  # fmt: skip
PACKED = {"gz": "gzip", "gzip": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd", "zstd": "zstd"}
NAME = re.compile(rf"\.({'|'.join(FORMS)})(?:\.({'|'.join(PACKED)}))?$", re.IGNORECASE)
EXPECTED = "expected .parquet, .jsonl, .json, .ndjson, .txt, .csv, .tsv or .arrow files (also .gz, .bz2, .xz, .zst)"


def form_of(name):
    """("jsonl", "gz") of "x.JSONL.gz", ("jsonl", None) of "x.jsonl", None where the name states no form."""
    found = NAME.search(str(name))
    return (found[1].lower(), found[2] and found[2].lower()) if found else None


def documents(path, name, column, start=0):
    """(row, text, None), or (row, None, what is wrong with the row), of the rows after the first `start`.

    path: where the file lies; name: what it is called, whose ending states the form, as of links to hashes.
    Raises UserError, naming the file, for what is wrong with all of it: another form, no such column.
    """
    form, packed = form_of(name)
    with linked(path, form, packed) as link:
        try:
            if form == "txt":
                yield from [(1, *text_of(link, packed, path))][start:]
            elif FORMS[form] is JSON:
                yield from json_documents(link, packed, form, path, column, start)
            else:
                yield from table_documents(link, form, path, column, start)
        except UserError:
            raise
        except Exception as error:  # of any of the libraries that unpack
            raise UserError(f"{path} cannot be read: {error}") from None


@contextmanager
def linked(path, form, packed):
    """A link with a plain name: `datasets` takes brackets in a name for a pattern, and guesses from endings."""
    with tempfile.TemporaryDirectory(prefix="blockwise-") as folder:
        link = Path(folder) / ".".join(filter(None, ["data", form, packed]))
        link.symlink_to(os.path.abspath(path))
        yield link


def tables(link, form, **options):
    """The file's rows as pyarrow tables of at most ROWS rows."""
    datasets = import_datasets()
    module, own = FORMS[form]
    # A cache of its own, since `datasets` leaves a lock file there for every file that it opens
    at = {"data_files": [str(link)], "cache_dir": str(link.parent / "cache")}
    builder = datasets.load_dataset_builder(module, **at, **own, **options)
    yield from builder.as_streaming_dataset("train").with_format("arrow").iter(batch_size=ROWS)


def import_datasets():
    """Without torch, which takes seconds and of which nothing is needed here, and without messages."""
    before = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        os.environ.pop("USE_TORCH")
        if before is not None:
            os.environ["USE_TORCH"] = before
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an error is one line, and we write it
    return datasets


def open_packed(link, packed):
    import fsspec

    return fsspec.open(str(link), "rb", compression=PACKED.get(packed)).open()


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

    found = column_in(table, column)
    if found is None:
        columns = ", ".join(table.column_names)
        raise UserError(f"{path} has no column {column}: its columns are {columns}; --text_column=NAME names it")
    if pyarrow.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    if not is_text(found.type):
        raise UserError(f"{path}: expected a column of text, {column} is of type {found.type}")
    return found.cast(pyarrow.large_binary()).to_pylist()


def table_documents(link, form, path, column, start):
    import pyarrow

    row = 0
    try:
        stated = rows_stated(link, form, path)
        # Other columns of a parquet file may be large, and need not be read
        only = {"columns": [column]} if form == "parquet" and column in parquet_columns(link) else {}
        for table in tables(link, form, **only):
            if row + table.num_rows > start:
                for i, data in enumerate(text_column(table, column, path), row + 1):
                    if i > start:
                        yield (i, *decoded(data, f"{path}, row {i}"))
            row += table.num_rows
        if stated not in (None, row):
            raise UserError(f"{path} has {stated:,} rows, {row:,} were read: expected another format, like .jsonl")
    except UserError:
        raise
    except Exception as error:  # of pyarrow, of pandas, of datasets
        kind = "parquet" if isinstance(error, pyarrow.ArrowException) and form == "parquet" else form
        raise UserError(f"{path} is not a valid {kind} file: {error}") from None


def rows_stated(link, form, path):
    """Number of rows, counted without `datasets`; None where it is not counted. Raises UserError for stray quotes.

    pandas takes a quote at the start of a field for the start of a quoted one and joins the lines up to the next quote.
    """
    if form == "parquet":
        from pyarrow import parquet

        return parquet.read_metadata(link).num_rows
    if form not in ("csv", "tsv"):
        return None
    csv.field_size_limit(sys.maxsize)
    packed = None if link.suffix == f".{form}" else link.suffix[1:]
    with open_packed(link, packed) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter="\t" if form == "tsv" else ",", strict=True)
        try:
            return sum(1 for row in rows if row) - 1
        except csv.Error as error:
            raise UserError(
                f"{path}, line {rows.line_num}: a quote that does not enclose a field ({error}) would join lines: "
                "expected quotes doubled inside of quoted fields, or .jsonl"
            ) from None


def parquet_columns(link):
    from pyarrow import parquet

    return parquet.read_schema(link).names


def decoded(data, place):
    """(text, None) or (None, problem)."""
    if data is None:
        return None, f"{place}: no text"
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        return None, f"{place}: not UTF-8 text: {error.reason} at byte {error.start}"


def text_of(link, packed, path):
    """A text file is one document. Not by `datasets`: it would turn every \\r\\n into \\n."""
    with open_packed(link, packed) as file:
        text, problem = decoded(file.read(), path)
    return text and text.removeprefix("\ufeff").replace("\n\ufeff", "\n"), problem


def json_documents(link, packed, form, path, column, start):
    """By `datasets` as long as it gives texts, from there on line by line.

    It takes ten megabytes at once, does not say which line of them is wrong, leaves out what is right beside it, stops
    where a column changes its type, and takes texts for dates that look like dates.
    """
    row = 0
    if form == "json" or not starts_list(link, packed):  # where each line is a document, a list is none
        try:
            for table in tables(link, form):
                found = column_in(table, column)
                if found is None or found.null_count or not is_text(found.type):
                    break
                texts = [(data.decode(), None) for data in text_column(table, column, path)]
                yield from ((i, *text) for i, text in enumerate(texts, row + 1) if i > start)
                row += len(texts)
            else:
                return
        except Exception:  # whatever it is, the next lines find its place
            pass
    with open_packed(link, packed) as file:
        lines = list_items(file, path) if form == "json" and starts_list(link, packed) else json_lines(file, path)
        for i, (place, record, problem) in enumerate(lines, 1):
            if i > max(row, start):
                yield (i, None, problem) if problem else (i, *text_in(record, column, place))


def starts_list(link, packed):
    with open_packed(link, packed) as file:
        return file.read(100).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


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


def list_items(file, path):
    try:
        items = json.loads(file.read().decode("utf-8-sig"))
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
