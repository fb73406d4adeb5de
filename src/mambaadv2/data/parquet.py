"""Parquet files as rows of texts; the only place that needs pyarrow, which is an extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mambaadv2.errors import DataError


def parquet_rows(path: Path) -> tuple[Sequence[str], Iterator[Mapping[str, object]]]:
    """Return the columns of a Parquet file and its rows, as values by column.

    Read in batches, so memory does not grow with the file. Raises `DataError`, naming the file,
    without pyarrow and for a file that cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow, which is not installed: "
            "install the extra 'parquet' (pip install '.[parquet]'), or save the manifest as .csv "
            "or .jsonl"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error

    def rows() -> Iterator[Mapping[str, object]]:
        try:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error})") from error

    return columns, rows()
