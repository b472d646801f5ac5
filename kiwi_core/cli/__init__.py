"""The command line: ``kiwi-edit``, one command a module.

Results go to stdout, everything else to stderr. Heavy imports wait until the input has been looked at.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import tyro

from .convert import convert
from .download import download
from .edit import edit
from .inspect import inspect


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    logging.basicConfig(format="kiwi-edit: %(message)s")
    logging.getLogger("kiwi_core").setLevel(logging.INFO)
    about = "Edit videos by instruction and by reference picture."
    try:
        commands = {"edit": edit, "convert": convert, "download": download, "inspect": inspect}
        tyro.extras.subcommand_cli_from_dict(commands, prog="kiwi-edit", description=about, args=argv)
    except MemoryError as error:
        edits = list(sys.argv[1:] if argv is None else argv)[:1] == ["edit"]
        advice = "here: --offload, or smaller --frames or --max-pixels." if edits else "close other programs."
        print(f"kiwi-edit: {str(error).rstrip('.')}; {advice}", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"kiwi-edit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kiwi-edit: stopped.", file=sys.stderr)
        return 130
    return 0
