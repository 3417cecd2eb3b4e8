"""The error of a reward that cannot score: one sentence that says what is wrong, where, and how to mend it."""


class RewardError(Exception):
    """No score could be given. Never stands for a low score, and a score never stands for it."""
