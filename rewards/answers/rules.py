r"""What is read out of an answer in text: the content of its last box, and whether it has the form that was asked for.

As the released code of EasyR1 and GCPO, whose regular expressions take minutes for an answer that repeats itself; here
every rule passes over the text once.
"""

import re

BOX = "\\boxed{"
MARKS = re.compile("([<>/])")


def mended(answer: str) -> str:
    """Without the blanks around `<`, `>` and `/`: models write `< think >` and `1 / 2`."""
    pieces = MARKS.split(answer)
    for place in range(0, len(pieces), 2):  # between the marks
        if place > 0:
            pieces[place] = pieces[place].lstrip()
        if place < len(pieces) - 1:
            pieces[place] = pieces[place].rstrip()
    return "".join(pieces)


def boxed(answer: str) -> str | None:
    r"""What the last `\boxed{` holds up to its matching brace; None without a box, or with one that never closes."""
    _, box, content = answer.rpartition(BOX)
    depth = 1 if box else 0
    for place, sign in enumerate(content if box else ""):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return content[:place].strip()
    return None


def well_formed(answer: str) -> bool:
    r"""Whether it begins with `<think>`, and `</think>`, `\boxed{` and `}` follow in this order."""
    if not answer.startswith("<think>"):
        return False
    place = len("<think>")
    for part in ("</think>", BOX, "}"):
        found = answer.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True
