"""The error of this package that is the user's to mend."""


class ModelError(Exception):
    """A model that is unknown or cannot be loaded: one sentence that says which, where, and how to mend it."""
