"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Bad input, in one line: what was given, what is accepted, what to do. The command line prints it, exit code 1."""
