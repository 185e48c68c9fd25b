"""The ways a command ends other than well, each with its exit code.

Every exception carries a message written for the user; the command line prints it without a
traceback. Anything else that escapes is a bug and shows its traceback.
"""

GAVE_UP = 5  # code of a group's process that ends by an error of exit code 1, which a crash has too


class OdistError(Exception):
    """Base: ends the command with `exit_code` and the message.

    lost_groups: those that ended so while all others came to their end
    """

    exit_code = 1
    lost_groups: tuple[int, ...] = ()


class CannotWrite(OdistError):
    """A full disk, or another reason why a file cannot be written; what was saved before is whole."""


class UserError(OdistError):
    """Wrong input: what was given, what was expected, what to type instead."""

    exit_code = 2


class Damaged(UserError):
    """A file of a run folder is not what was written there; the message names it and the cure."""


class Diverged(OdistError):
    """The loss is no longer a finite number, or one that it cannot be."""

    exit_code = 3


class LostWorkers(OdistError):
    """A group waited for a peer until the time limit, or was lost itself; all that can be is saved."""

    exit_code = 4


class Interrupted(OdistError):
    """Stopped by a signal; the state is saved and the same command continues."""

    exit_code = 130
