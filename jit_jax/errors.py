"""The one kind of error that a user can cause and mend."""


class UserError(ValueError):
    """What cannot be done as asked; the message is one sentence that names the fix.

    A command ends with that sentence and exit code 1. Every other exception is a bug of ours and
    keeps its traceback.
    """
