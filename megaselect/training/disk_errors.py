"""What the system refused, and what helps, in words for a note or an error."""

from __future__ import annotations

import errno

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the directory writable"),
    errno.ENOENT: "make the run directory again",
    errno.ENOMEM: "free some memory",
    errno.EFBIG: "raise the limit on a file's size",
}


def reason_of(error: OSError) -> str:
    """Such as: No space left on device."""
    return error.strerror or str(error)


def remedy_for(error: OSError) -> str:
    """Such as: free some space."""
    return _REMEDIES.get(error.errno or 0, "see to the disk")
