"""The one error for a user's mistake."""


class UserError(ValueError):
    """A wrong value, path or file of the user's.

    Its message is one line that names the value, the rule and the way out. The command line prints that line and
    exits with 2, without a traceback; in Python it is an ordinary ValueError.
    """
