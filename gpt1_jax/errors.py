"""The program's own exceptions, and the exit status of a run that was told to stop."""

STOPPED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: saved, run the same command again


class UserError(Exception):
    """A user's mistake; the message says how to fix it: `WHERE: WHAT is wrong. HOW to fix it.`

    `main` prints it without a traceback and exits with status 2.
    """


class DamagedError(UserError):
    """A checkpoint does not hold what was written, or is gone; others may be whole."""


class DivergedError(UserError):
    """The numbers of a run are no longer finite; other runs need not end."""


class Stopped(Exception):
    """An evaluation that was told to stop has ended before its next batch."""
