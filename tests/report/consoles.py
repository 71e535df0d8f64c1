"""A console into a pipe, and what was written to it."""

import io

from rich.console import Console


def pipe(encoding="utf-8"):
    """A console whose file is no terminal."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(width=80, file=file, _environ={}), file


def written(file):
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)
