"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence that names what is wrong and the mend. `main` prints it without a
    traceback and exits with status 2.
    """
