"""How questions are asked in an evaluation: how answers are drawn, and in what size the pictures are shown.

`own` is as the policy was trained; `papo` is what PAPO-Eval does, on whose files VPPO's and GCPO's figures were
measured: top-k 50, a default that its launch does not override, and smaller pictures.
"""

from dataclasses import dataclass, field

from t2i_rl.prompts.questions import PictureSize


@dataclass(frozen=True)
class Protocol:
    """top_k: 0 keeps all. max_tokens: of an answer."""

    top_k: int = 0
    max_tokens: int = 2048
    size: PictureSize = field(default_factory=PictureSize)


PROTOCOLS = {"own": Protocol(), "papo": Protocol(top_k=50, size=PictureSize(32**2, 768**2))}
