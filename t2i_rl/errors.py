"""The error that is the user's to mend: one sentence that says what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2."""


class DivergenceError(Exception):
    """A loss or a gradient stopped being finite. The run stops before it touches the weights; exit code 1."""
