"""The exceptions that mean "the user can mend this"."""


class UserError(ValueError):
    """Bad input, in one line: what was given, what is accepted, what to do. The command line prints it, exit code 1."""


class UsageError(UserError):
    """An argument that means nothing. The command line prints it as wrong usage, exit code 2."""


class NotFoundError(UsageError):
    """An argument that names nothing that is there."""


class DamagedError(UserError):
    """A file that is not whole any more; an older one may be."""
