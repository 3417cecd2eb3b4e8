"""Low-rank adapters (LoRA, arXiv:2106.09685) on the transformer layers of any policy, through peft.

The adapted policy is a second tree of modules over the weights of its base, which are frozen. The base itself is the
reference, so none of the weights exists twice. Adapters are float32, whatever the base runs in, and begin as zero.

An adapter's folder has `adapter_config.json`, which names the base, and `adapter_model.safetensors`, as peft has them;
and `base.json`, which tells the base from others of its name.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ModelError
from models.files.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, check_base, write_base
from models.files.config import read_json
from models.files.tensors import check_floating, check_tensors, read_tensors
from models.policy import Condition, Policy, ReadsBeginnings, Samples, State
from models.question import Question

# What peft can do besides, and what stands for not doing it: such adapters are refused.
VARIANTS = {"bias": "none"} | dict.fromkeys(
    (
        *("use_rslora", "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "rank_pattern"),
        *("alpha_pattern", "modules_to_save", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    ),
    None,
)
# Ways to begin that change the base's weights, so that the adapters do not belong to the base as it is.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraPolicy:
    """A policy with adapters, of which `base` is the policy without them."""

    def __init__(self, base: Policy, adapted: Policy, model: Any, digest: str) -> None:
        """model: peft's `PeftModel` around the module of `adapted`; digest: of what `base` was read from."""
        self.base, self.adapted, self.model, self.digest = base, adapted, model, digest
        self.layout, self.default_guidance = base.layout, base.default_guidance
        self.vocabulary, self.stop_tokens, self.never = base.vocabulary, base.stop_tokens, base.never

    @property
    def gradient_checkpointing(self) -> bool:
        return self.adapted.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.adapted.gradient_checkpointing = value

    @property
    def compiled(self) -> bool:
        """Of both trees; a family that cannot has no such attribute."""
        return cast(Any, self.adapted).compiled

    @compiled.setter
    def compiled(self, value: bool) -> None:
        for policy in (self.adapted, self.base):
            cast(Any, policy).compiled = value

    @property
    def module(self) -> torch.nn.Module:
        return self.adapted.module

    @property
    def layers(self) -> torch.nn.ModuleList:
        return self.adapted.layers

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.adapted.control_tokens

    def encode(
        self, prompts: Sequence[str | Question], negative_prompts: Sequence[str | Question] | None = None
    ) -> Condition:
        return self.adapted.encode(prompts, negative_prompts)

    def cut(self, prompts: Sequence[str]) -> tuple[int, int] | None:
        return self.adapted.cut(prompts) if isinstance(self.adapted, ReadsBeginnings) else None

    def guidance(self, scale: float) -> Float[Tensor, " blocks"]:
        return self.adapted.guidance(scale)

    def prefill(self, condition: Condition, group_size: int, branches: int, into: State | None = None) -> State:
        return self.adapted.prefill(condition, group_size, branches, into)

    def next_logits(self, state: State) -> Float[Tensor, "K R block V"]:
        return self.adapted.next_logits(state)

    def append(self, state: State, tokens: Int[Tensor, "R block"]) -> None:
        self.adapted.append(state, tokens)

    def hidden(self, condition: Condition, tokens: Int[Tensor, "R N"], branches: int) -> Float[Tensor, "K R N D"]:
        return self.adapted.hidden(condition, tokens, branches)

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.adapted.head(hidden)

    def token_embeddings(
        self, tokens: Int[Tensor, "R N"], kind: Literal["lm_input", "codebook"]
    ) -> Float[Tensor, "R N E"]:
        return self.adapted.token_embeddings(tokens, kind)

    def decode(self, tokens: Int[Tensor, "R N"]) -> Samples:
        return self.adapted.decode(tokens)

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The adapters."""
        return (parameter for parameter in self.module.parameters() if parameter.requires_grad)

    def reference(self) -> Policy:
        return self.base

    def save(self, path: Path) -> None:
        """The adapters alone; the base is named."""
        path.mkdir(parents=True, exist_ok=True)
        if self.digest:
            write_base(path, self.digest)
        self.model.peft_config["default"].save_pretrained(path)
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path / ADAPTER_WEIGHTS)

    def fill(self, path: Path) -> None:
        """Take the adapters of a file. Raises ModelError for those of another model or rank."""
        found = read_tensors(path)
        wanted = self._tensors()
        check_floating(path, found)
        check_tensors(path, found, wanted)
        _peft().set_peft_model_state_dict(self.model, found)

    def merged(self) -> Policy:
        """The adapters added to the weights. There is still one copy of these: `base` and this policy are used up."""
        self.model.merge_and_unload()
        return self.adapted

    def _tensors(self) -> dict[str, Tensor]:
        return _peft().get_peft_model_state_dict(self.model, save_embedding_layers=False)


def adapt(
    base: Policy, name: str, rank: int, alpha: float, targets: Sequence[str] = (), seed: int = 0, digest: str = ""
) -> LoraPolicy:
    """New adapters on a policy, which is frozen; they change nothing yet.

    name: what the base is called where it is loaded from; digest: of what it was read from, if that is known. Adapter
        folders carry both.
    alpha: the product of the two factors is scaled by alpha / rank.
    targets: names of the linear layers inside each transformer layer; all of them if not given.
    Raises ModelError for a target that the layers do not have, and where peft is missing.
    """
    peft = _peft()
    if isinstance(base, LoraPolicy):
        raise ModelError(f"{name} is an adapter itself: merge it first, with t2i-rl export --model {name} --out FOLDER")
    prefix = next(path for path, module in base.module.named_modules() if module is base.layers)
    linear = linear_names(base.layers, name, targets)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=rf"{re.escape(prefix)}\..*\.({'|'.join(linear)})",
    )
    for parameter in base.trainable_parameters():
        parameter.requires_grad_(False)
    adapted = base.reference()  # of a policy that trains nothing, it shares every weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(adapted.module, config)
    # Afterwards: peft writes what the module calls itself over it.
    config.base_model_name_or_path = str(Path(name).resolve()) if Path(name).exists() else name
    return LoraPolicy(base, adapted, model.eval(), digest)


def linear_names(layers: torch.nn.ModuleList, name: str, targets: Sequence[str] = ()) -> list[str]:
    """What the linear layers inside a model's transformer layers are called; the targets where some are named.

    Raises ModelError for a target that is not among them.
    """
    linear = {path for path, module in layers.named_modules() if isinstance(module, torch.nn.Linear)}
    known = sorted({path.rpartition(".")[2] for path in linear})
    if unknown := [target for target in targets if target not in known]:
        raise ModelError(f"lora.targets has {unknown[0]}, but the layers of {name} have {', '.join(known)}: choose")
    return list(targets) or known


def attach(base: Policy, folder: Path, digest: str) -> LoraPolicy:
    """The adapters of a folder on their base, which was read from files of this digest. Raises ModelError."""
    check_base(folder, digest)
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    for key, without in VARIANTS.items():
        if config.get(key) and config[key] != without:
            raise ModelError(f"{path} has {key} {config[key]!r}: only plain LoRA is known, so merge it with peft first")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(CHANGES_BASE):
        raise ModelError(f"{path} has init_lora_weights {begun!r}, which changed the base: merge it with peft first")
    rank, alpha, said = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if config.get("peft_type") != "LORA" or type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(f"{path} describes no LoRA with r and lora_alpha: copy the adapter again")
    listed = re.search(r"\(([\w|]+)\)$", said) if isinstance(said, str) else None
    targets = listed[1].split("|") if listed else said
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ModelError(f"{path} has target_modules {said!r}: write a list of the linear layers' names there")
    stored = read_tensors(folder / ADAPTER_WEIGHTS)
    # Before anything of that size is made.
    if other := sorted(name for name, tensor in stored.items() if ".lora_A." in name and tensor.shape[:1] != (rank,)):
        raise ModelError(
            f"{path} has r {rank}, but {other[0]} is {tuple(stored[other[0]].shape)}: copy the adapter again"
        )
    policy = adapt(base, base_of(folder), rank, alpha, [one.rpartition(".")[2] for one in targets], digest=digest)
    policy.fill(folder / ADAPTER_WEIGHTS)
    return policy


def _peft() -> Any:
    """The package, which takes a while to import. Raises ModelError where an older environment lacks it."""
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"adapters need peft, which is not here ({error}): pip install -e .") from error
    return peft
