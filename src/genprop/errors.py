"""The one exception that is meant for users.

Everything a person can get wrong (a file, a size, a key, a hash) is raised as a `GenPropError`; the
command line prints it as two lines and exits with 1. Anything else is a bug and keeps its traceback
in the library.
"""


class GenPropError(Exception):
    """What was wrong, with the value got and the value expected, and what to do about it.

    Args:
        message: one sentence that names what was got and what was expected.
        hint: one sentence that says what to do; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
