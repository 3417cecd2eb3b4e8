"""The card of a checkpoint: README.md, which says what it is, how it came to be and how to load it, ours or not."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.janus.policy import ROLES, JanusPolicy
from models.lora import LoraPolicy
from models.policy import Policy
from models.registry import find
from rewards.registry import anywhere
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.places import placeless
from t2i_rl.configuration.run_method import run_method
from t2i_rl.training.doubts import history

CARD = "README.md"
TO_LOAD = "## To load it"
BY_US = ["", TO_LOAD, "", "```bash", 't2i-rl generate "a photo of a red circle" --model .', "```"]
PLAIN = """
With plain transformers:

```python
import torch
from PIL import Image
from transformers import AutoTokenizer, JanusForConditionalGeneration

folder = "."  # of this checkpoint
model, tokenizer = JanusForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
text = "{user}: a photo of a red circle\\n\\n{assistant}:<begin_of_image>"
ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
tokens = model.generate(ids, generation_mode="image", do_sample=True, attention_mask=torch.ones_like(ids))
pixels = model.decode_image_tokens(tokens).detach().clamp(-1, 1)  # [1, H, W, 3], from -1 to 1
image = ((pixels[0] + 1) * 127.5).round().to(torch.uint8)
Image.fromarray(image.numpy()).save("circle.png")
```
"""
ADAPTERS = """
These are adapters, as peft writes them, of the base above: `PeftModel.from_pretrained(base, folder)` puts them on it,
and `t2i-rl export --model FOLDER --out MERGED` makes a whole model of both.
"""


def card(
    config: TrainConfig, policy: Policy, step: int, rows: Sequence[Mapping[str, float]], started: Mapping[str, Any]
) -> str:
    """The text of a checkpoint's README.md, which may go where others read it: without folders and addresses.

    rows: what the run has measured so far. started: `t2i_rl.training.run_record.surroundings`.
    """
    method, plain, base = run_method(config), _plain(policy), _base(config.model)
    config = placeless(config)
    judged = [row for row in rows if "heldout" in row and row["step"] <= step]
    lines = [
        *("---", f"base_model: {json.dumps(base)}", *(["library_name: transformers"] if plain else [])),
        *(
            f"pipeline_tag: {'image-text-to-text' if policy.stop_tokens else 'text-to-image'}",
            "tags: [t2i-rl, reinforcement-learning, autoregressive]",
            "---",
        ),
        *("", f"# {config.out.name}, step {step} of {config.steps}", ""),
        f"`{config.model}`, trained with reinforcement learning by t2i-rl.",
        *("", "| | |", "|---|---|"),
        f"| method | `{config.method}`: {method.summary} |",
        f"| reward | `{anywhere(config.reward)}` |",
        f"| prompts | `{config.prompts}`, held out `{config.heldout}` |",
        f"| a step | {config.rollout.prompts_per_step} prompts x {config.rollout.group_size} images, guidance "
        f"{config.rollout.sampling.guidance_scale:g} |",
        f"| learning rate | {config.update.learning_rate:g}, {config.update.schedule} |",
        f"| command | `{publishable(started.get('command', ''))}` |",
        f"| hardware | {started.get('hardware', '')} |",
        f"| commit | {started.get('commit') or 'unknown'} |",
        f"| versions | {', '.join(f'{name} {number}' for name, number in started.get('versions', {}).items())} |",
        *_curve(judged),
        *_doubts(config, [row for row in rows if row["step"] <= step]),
        *BY_US,
    ]
    return "\n".join(lines) + "\n" + plain


def _base(model: str) -> str:
    """The model as others can find it: on the hub, or by the name of its folder alone."""
    source = find(model).source
    return Path(source).name if Path(source).exists() else source


def publishable(command: str) -> str:
    """A command without addresses, and with the last names alone of what lies in folders from the root."""
    words = [re.sub(r"@https?://\S*", "", word) for word in shlex.split(command)]
    return shlex.join(re.sub(r"(^|[=@])[~/](.*/)?(?=.)", r"\1", word) for word in words)


def carried(card: str) -> str:
    """The card of a model that was written in another form: what it said of loading was of the former one."""
    said = card.partition(f"\n{TO_LOAD}")[0].replace("library_name: transformers\n", "")
    return said + "\n".join(BY_US) + "\n"


def _curve(judged: Sequence[Mapping[str, float]]) -> list[str]:
    """The held-out scores, evaluation by evaluation."""
    if not judged:
        return ["", "It was never evaluated on held-out prompts."]
    names = [name for name in judged[-1] if name == "heldout" or name.startswith(("heldout/", "also/"))]
    head = ["step", *(name.removeprefix("heldout/").replace("heldout", "held out") for name in names)]
    body = [[f"{row['step']:.0f}", *(f"{row[name]:.3f}" if name in row else "" for name in names)] for row in judged]
    table = [head, ["---"] * len(head), *body]
    return ["", "## Held-out scores", "", *(f"| {' | '.join(cells)} |" for cells in table)]


def _doubts(config: TrainConfig, rows: Sequence[Mapping[str, float]]) -> list[str]:
    """What the run's own numbers say against it."""
    found = history(rows, config.dtype, config.update.optimizer_steps)
    said = [f"- {name}, in {len(steps)} step(s), last {steps[-1]}: {last}" for name, (steps, last) in found.items()]
    return ["", "## Doubts", "", *said] if said else []


def _plain(policy: Policy) -> str:
    """How others load it: the families that transformers knows, in its format."""
    if isinstance(policy, LoraPolicy):
        return ADAPTERS
    if not isinstance(policy, JanusPolicy) or policy.parts is not None:
        return ""
    user, assistant = ROLES[policy.prompt_style]
    return PLAIN.replace("{user}", user).replace("{assistant}", assistant)
