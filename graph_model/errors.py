"""The error that a user can mend."""


class UserError(Exception):
    """Bad input: the message names the file or setting, what was found, the rule and the way out.

    Entry points print the message without a traceback and exit with status 2.
    """
