"""Errors that the user can mend, and how the scripts end."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, what was expected and how to mend it.

    The scripts print it as one line, without a traceback, and exit with status 2.
    """


def exit_status(action: Callable[[], int | None]) -> int:
    """Runs a script's action: its status or 0, 2 after a `UserError`, 130 where it is stopped."""
    try:
        status = action()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status or 0
