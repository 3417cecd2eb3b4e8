"""What a run will need: memory per GPU, and the least time that its bytes and multiplications can take.

Arithmetic on the true architecture, nothing measured. Memory counts what is as large as the model or the batch; the
allocator's own and the driver's are left to `USABLE`. The floors assume the peak speeds that the plan is given, so a
real step takes longer; how much longer is the efficiency.

Answers in text are planned at their limit. What the vision tower keeps for its backward pass is left out: with
checkpointing it is the input of each of its layers, once per picture of a batch.

With several GPUs what is trained is split (float32 weights, gradients, moments, reference), and each has a whole copy
in the model's precision besides, from which it samples (`t2i_rl.parallel`); adapters, image tokenizer and text encoder
are whole on each. Groups are never split, so prompts are what is shared out. What the GPUs send each other is in
`t2i_rl.planning.network`. AdamW is one kernel on a GPU, and needs nothing beside.
"""

from dataclasses import replace
from itertools import accumulate
from math import ceil

from torch.nn import Linear

from models.architectures import Architecture, count, linear_weights
from models.parts.decoding import ROUNDED
from models.parts.rollout_weights import MERGED
from models.trainable import chosen
from t2i_rl.planning.plan_config import PlanConfig
from t2i_rl.rollout.log_probs import chunk_for

BYTES = {"float32": 4, "bfloat16": 2}
USABLE = 0.9  # of a card's memory, for tensors
# float32 [rows, block, V] at once while sampling: two branches, mixture, softmax, its sum, a statistic
LOGIT_COPIES = 6
CHUNK_COPIES = 4  # float32 [chunk, V] at once in the update: logits, log-probs, exponentials, their gradient
BRANCHES = 2
FIXED = {"janus", "llamagen"}  # families whose decoding has buffers that stay (`models.parts.decoding`)
# The pixel decoder, in float32: bytes of an image of 384 pixels at its widest, as seen, and how many images at once.
PIXELS, SIDE, PIXELS_PER_TOKEN = 358e6, 384, 16
DECODED = {"janus": 32, "llamagen": 16, "star": 32}
FLOAT32 = {  # parts that run in float32 whatever the model runs in
    "janus": {"image tokenizer"},
    "llamagen": {"image tokenizer"},
    "star": {"image tokenizer", "text encoder"},
    "qwen_vl": set(),
}


def memory(model: Architecture, plan: PlanConfig) -> dict[str, dict[str, float]]:
    """Bytes on each GPU by what they are for: those that stay, those while sampling, those of the update."""
    size = BYTES[plan.dtype]
    bytes_of = {
        name: count(modules) * (4 if name in FLOAT32[model.family] else size) for name, modules in model.parts.items()
    }
    first, *others = bytes_of.values()
    adapters = plan.lora_rank * adapter_entries(model)
    learned = adapters or trained(model, plan)
    sequence = read(model, plan) + sum(fed(model))
    rows = BRANCHES * plan.rows_at_once
    slots = in_cache(model, plan) + sum(fed(model))
    fixed = model.family in FIXED
    buffers = rows * (ceil(slots / ROUNDED) * ROUNDED if fixed else slots) * cached(model) * size
    # With checkpointing, every layer's input and all of the one layer that is being recomputed.
    whole, inputs = (1, len(model.layers)) if plan.gradient_checkpointing else (len(model.layers), 0)
    kept = whole * kept_by_layer(model) + inputs * model.width
    casts = whole * adapted_inputs(model) / len(model.layers) if plan.lora_rank and size < 4 else 0
    side = PIXELS_PER_TOKEN * max(model.blocks if len({*model.blocks}) > 1 else (model.tokens,)) ** 0.5
    decoded = min(plan.rows_at_once, DECODED.get(model.family, 0))
    return {
        "always": {
            "weights": first,
            "other parts": sum(others),
            "adapters": 4 * adapters,
            "float32 copies": 4 * learned / plan.parts if copied(plan) or plan.parts > 1 else 0,
            "gradients": 4 * learned / plan.parts,
            "moments": 2 * 4 * learned / plan.parts,
            "merged adapters": merged(model, plan, sum(bytes_of.values())),
            "keys and values": buffers if fixed else 0,
            "reference": 0 if plan.lora_rank or not plan.reference else size * learned / plan.parts,
        },
        "sampling": {
            "keys and values": 0 if fixed else buffers,
            "logits": rows // BRANCHES * max(model.blocks) * model.codes * 4 * LOGIT_COPIES,
        },
        "pixels": {"image decoder": decoded * PIXELS * (side / SIDE) ** 2},
        "update": {
            "gathered layers": 0 if plan.parts == 1 else gathered(model, plan) * size,
            "activations": plan.update_batch * sequence * kept * size,
            "adapters' inputs": plan.update_batch * sequence * casts * 4,
            "logits": chunk_for(model.codes) * model.codes * 4 * CHUNK_COPIES,
        },
    }


def trained(model: Architecture, plan: PlanConfig) -> int:
    """Entries that an update changes of the model itself. Raises ModelError for a pattern that no parameter has."""
    if not plan.trainable:
        return model.trained
    names = chosen(model.module, plan.trainable)
    return sum(value.numel() for name, value in model.module.named_parameters() if name in names)


def peaks(model: Architecture, plan: PlanConfig) -> dict[str, float]:
    """Bytes that each GPU needs at most, while sampling, decoding pixels and in the update."""
    always, *phases = memory(model, plan).items()
    return {phase: sum(always[1].values()) + sum(parts.values()) for phase, parts in phases if sum(parts.values())}


def gathered(model: Architecture, plan: PlanConfig) -> float:
    """Entries that are whole at once in the update: two layers, and what is trained and in none."""
    layers = linear_weights(model.layers)
    return 2 * layers / len(model.layers) + max(0, trained(model, plan) - layers)


def adapted_inputs(model: Architecture) -> int:
    """Entries of a token that adapters read: each keeps its own, in float32."""
    return sum(part.in_features for part in model.layers.modules() if isinstance(part, Linear))


def most_prompts(model: Architecture, plan: PlanConfig, room: float) -> int:
    """Prompts that can be sampled at once in so many bytes, at least 1, in batches of one size: another one's buffers
    would take the place of the first's. What other phases need at their peak in any case is there for sampling too."""

    def peak(size: int) -> float:
        return max(peaks(model, replace(plan, rollout_batch=size)).values())

    room = max(room, peak(1))
    return next(
        size for size in range(plan.prompts_per_gpu, 0, -1) if plan.prompts_per_gpu % size == 0 and peak(size) <= room
    )


def kept_by_layer(model: Architecture) -> int:
    """Entries of a token that a layer keeps for its backward pass, its input among them.

    With a card's fused kernels. Llama: two inputs, two normed ones, query, attention's output; key and value; of the
    MLP the gate before and after its activation, the other half, their product. STAR: self-attention keeps input,
    normed, query, key and value as projected (3), rotated query and key, both normalised, the query scaled, output;
    cross-attention input, normed, query three times, output; the MLP input, normed, and twice its inside. The keys of
    STAR's text are left out: 77 positions beside all tokens of an image.
    """
    if model.family == "star":
        return (11 + 6 + 2) * model.width + 2 * model.mlp
    return 6 * model.width + 2 * model.kv_width + 4 * model.mlp


def cached(model: Architecture) -> int:
    """Entries of a token's keys and values in all layers."""
    return 2 * model.kv_width * len(model.layers)


def read(model: Architecture, plan: PlanConfig) -> int:
    """Positions of the sequence that the prompt takes."""
    return plan.prompt_tokens if model.in_sequence else 0


def merged(model: Architecture, plan: PlanConfig, held: float) -> float:
    """Bytes of the layers with their adapters added, which decoding reads where they fit beside what is held."""
    copy = BYTES[plan.dtype] * linear_weights(model.layers)
    fits = copy <= MERGED * (plan.memory_gb * 1e9 - held)
    return copy if plan.lora_rank and model.family != "star" and fits else 0


def in_cache(model: Architecture, plan: PlanConfig) -> int:
    """Slots that the prompt takes while tokens are drawn; LlamaGen's are summed up in two."""
    return 2 if model.family == "llamagen" else read(model, plan)


def fed(model: Architecture) -> tuple[int, ...]:
    """Positions of the sequence that each step takes: the last token of a raster is predicted and never read."""
    return model.blocks[:-1] if model.in_sequence else model.blocks


def copied(plan: PlanConfig) -> bool:
    """Whether the optimizer steps on float32 copies (`t2i_rl.training.optimizer`)."""
    return plan.dtype != "float32" and not plan.lora_rank


def floors(model: Architecture, plan: PlanConfig) -> dict[str, tuple[float, float]]:
    """Operations and bytes of a step on each GPU, as (sampling's, update's), none of which can be saved.

    A multiplication and an addition are two operations. Sampling reads the layers and the head once per decoding step
    and batch, and the keys and values of everything before. The update reads the weights once per pass and batch;
    AdamW reads weights, gradients and two moments and writes all but the gradients, copies and what they are copies of.
    """
    size, prompt = BYTES[plan.dtype], read(model, plan)
    layers, head = linear_weights(model.layers), linear_weights(model.head)
    ends = [in_cache(model, plan) + end for end in accumulate(fed(model))]
    seen = sum(block * end for block, end in zip(fed(model), ends, strict=True))  # pairs of a token and one it sees
    attention = 4 * model.width * len(model.layers)  # operations of such a pair: scores, then values
    images, prompts = plan.images_per_gpu, plan.prompts_per_gpu
    tokens = sum(fed(model))
    decoding = tokens * 2 * layers + model.tokens * 2 * head + seen * attention
    reading = prompt * 2 * layers + prompt * (prompt + 1) // 2 * attention
    batches = ceil(prompts / (plan.rollout_batch or 1))
    sampled = (
        BRANCHES * (images * decoding + prompts * reading),
        batches * len(model.blocks) * (layers + head) * size + BRANCHES * images * sum(ends) * cached(model) * size,
    )

    learned = plan.lora_rank * adapter_entries(model) or trained(model, plan)
    # Backward is one pass for the inputs' gradients and, where the weights are trained, one for theirs.
    passes = 1 + 1 + (not plan.lora_rank) + plan.gradient_checkpointing + plan.reference
    head_passes = 2 + 1 + plan.reference  # recomputed in backward; it is not trained in Janus
    all_seen = seen + (prompt - in_cache(model, plan)) * tokens + prompt * (prompt + 1) // 2
    forward = (prompt + tokens) * 2 * layers + all_seen * attention
    updated = (
        images * (passes * forward + head_passes * model.tokens * 2 * head),
        ceil(images / plan.update_batch) * passes * layers * size
        + learned * (7 * 4 + size * copied(plan)) / plan.parts,
    )
    return {"operations": (sampled[0], updated[0]), "bytes": (sampled[1], updated[1])}


def adapter_entries(model: Architecture) -> int:
    """Entries of adapters of rank 1 on every linear layer."""
    found = (part for part in model.layers.modules() if isinstance(part, Linear))
    return sum(part.in_features + part.out_features for part in found)
