"""T2I-CompBench's score of complex prompts: the mean of those of attribute, place and action that a prompt is about."""

from collections.abc import Collection


def as_key(prompt: str) -> str:
    """How the lists of spatial and of action prompts are searched: in lower case, up to the first full stop."""
    return prompt.lower().partition(".")[0].strip()


def three_in_one(
    prompt: str,
    attribute: float,
    place: float,
    action: float,
    spatial: Collection[str],
    actions: Collection[str],
) -> float:
    """The score of one image. spatial, actions: the keys (`as_key`) of the prompts about places and actions alone.

    A prompt about places: attribute and place; about an action: attribute and action; about both: all three.
    """
    key = as_key(prompt)
    if key in spatial:
        return (place + attribute) / 2
    if key in actions:
        return (action + attribute) / 2
    return (attribute + place + action) / 3
