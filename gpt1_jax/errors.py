"""The one exception that a user is meant to see, and the exit status of a run that was told to stop."""

STOPPED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one sentence that says what is wrong and how to fix it. `main` prints it without a
    traceback and exits with status 2.
    """
