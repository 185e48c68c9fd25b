"""The errors that end a command, each with its exit code.

Every one carries a message for the user, which the command line prints without a traceback. Any other exception that
escapes is a bug and shows its traceback.
"""

GAVE_UP = 5  # exit code of a group's process for errors whose own code is 1, because a crash has code 1 too


class OdistError(Exception):
    """Base: ends the command with `exit_code` and the message.

    lost_groups: groups that ended with this error while all others finished
    said: another process of the job shows the message
    """

    exit_code = 1
    lost_groups: tuple[int, ...] = ()
    said: bool = False


class CannotWrite(OdistError):
    """A full disk, or another reason why a file cannot be written; everything saved before is intact."""


class UserError(OdistError):
    """Wrong input: what was given, what was expected, what to type instead."""

    exit_code = 2


class Damaged(UserError):
    """A file of a run folder is not what was written there; the message names it and the cure."""


class Diverged(OdistError):
    """The loss is not finite any more, or has a value that is impossible."""

    exit_code = 3


class LostWorkers(OdistError):
    """A group waited for a peer until the time limit, or was lost itself; the others' state is saved."""

    exit_code = 4


class Interrupted(OdistError):
    """Stopped by a signal; the state is saved and the same command continues."""

    exit_code = 130
