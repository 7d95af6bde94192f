"""Errors that the user can mend."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, what was expected and how to mend it.

    The scripts print it as one line, without a traceback, and exit with status 2.
    """
