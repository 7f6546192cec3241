"""The one exception that a user is meant to see, and what a run that was told to stop ends with."""

STOPPED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again


class UserError(Exception):
    """A user error; the message says how to fix it: `WHERE: WHAT is wrong. HOW to fix it.`

    `main` prints it without a traceback and exits with status 2.
    """


class DamagedError(UserError):
    """A checkpoint does not hold what was written, or is gone; others may be well."""


class DivergedError(UserError):
    """A run whose numbers are no longer finite; other runs may be well."""


class Stopped(Exception):
    """An evaluation that was told to stop has ended before its next batch."""
