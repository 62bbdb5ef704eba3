"""The one error that users are meant to see."""


class UserError(Exception):
    """Bad input. The message is one sentence: what was given, what was expected, what to write instead.

    The command prints it and exits with code 2.
    """
