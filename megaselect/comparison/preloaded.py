"""What the server that a comparison's processes are copied from has loaded."""

from megaselect.comparison import worker
from megaselect.compatibility import load_compiler
from megaselect.kernels import preloaded as kernels

load_compiler()

__all__ = ["kernels", "worker"]
