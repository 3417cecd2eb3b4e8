"""The error of a reward that cannot score: one sentence that says what is wrong, where, and how to mend it."""


class RewardError(Exception):
    """No score could be given. Never stands for a low score, and a score never stands for it."""


def printable(text: str) -> str:
    """The text for a terminal: what would steer that, such as escape sequences inside of a prompt, is spelled out."""
    return "".join(
        sign if sign.isprintable() or sign in KEPT else sign.encode("unicode_escape").decode() for sign in text
    )


KEPT = "\n\u200c\u200d"  # joiners are parts of scripts and of emojis
