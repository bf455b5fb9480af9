"""Parquet files: the texts of one column, a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path

from retnet.data.rows import BATCH_ROWS, brief, check_column, column_texts, optional_library

BUFFER_BYTES = 1 << 20
"""To read at a time; without a buffer a row group's whole column is read at once."""


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts of a Parquet file's column, in order; null is no text.

    Raises:
        ValueError: pyarrow is missing, the file is not Parquet, has no such column, or the column
            holds something else than text.
    """
    parquet = optional_library("pyarrow.parquet", reads=str(path))
    yield from column_texts(_batches(parquet, path, text_field), text_field, where=str(path))


def _batches(parquet, path: Path, text_field: str) -> Iterator[list]:
    arrow_error = optional_library("pyarrow", reads=str(path)).ArrowException
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
            check_column(file.schema_arrow.names, text_field, where=str(path))
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[text_field]):
                yield batch.column(text_field).to_pylist()
    except (arrow_error, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a whole Parquet file that can be read, because its name ends in "
            f".parquet ({brief(error)}); write it again, or leave it out"
        ) from error
