"""The one exception that stands for a mistake of the user, not of the code."""


class UserError(ValueError):
    """A wrong setting, file or function handed in by the user.

    The message is one line that names the field, the value received and what would be right. The command line prints
    it as it is and leaves with exit code 2, without a traceback.
    """
