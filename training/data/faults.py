"""What is wrong with a row, of whatever error reading it raised."""

from __future__ import annotations

import errno

# A full disk or too many open files say nothing about a row: mended, it can be read. EIO is not among them, since
# FFmpeg has it for damaged clips too.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE}


def problem(error: Exception) -> str:
    """The sentence that tells why a row cannot be read.

    Raises ``error`` itself where it, or what it came of, is the machine's fault and no row's: memory, a full or
    read-only disk, too many open files.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE):
            raise error
        cause = cause.__cause__
    # Decoders raise errors of any kind on bytes that no one foresaw; one file must not end days of work.
    return str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
