"""What the operating system refuses, as a DataError."""

from collections.abc import Iterator
from contextlib import contextmanager

from megaselect.errors import DataError


@contextmanager
def explain_os_errors(task: str, remedy: str, kind: type[DataError] = DataError) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into one line of a DataError, of `kind` if need be."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        raise kind(f"cannot {task}: {error.strerror}{where}; {remedy}") from error
