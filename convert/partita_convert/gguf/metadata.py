"""A decoder's config as GGUF keys, and the tensors that hold rope factors.

Not here: the tokenizer's keys, weights. Invariant: what the keys say, read by our own reader, is the decoder that was
asked for; anything that GGUF cannot say is refused by the name of the field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf.architectures import ARCHITECTURES, Architecture
from partita.checkpoint.gguf.extensions import GATING, usual_attention_factor
from partita.checkpoint.gguf.names import SAMPLING_KEYS, config_from, with_rope_tensors
from partita.checkpoint.gguf.parts import LONG_FACTORS, NEVER, ROPE_FACTORS, SHORT_FACTORS
from partita.errors import CheckpointError, UnsupportedModel
from partita.inference.sampling import recommended_values
from partita.model.config import ConvConfig, DeltaConfig, LayerConfig, ModelConfig, RopeConfig
from partita.model.families.parse import parse
from partita.model.families.wrappers import text_config
from partita.model.rope import inverse_frequencies

from .file import FILE_TYPE, Typed, inferred
from .mixes import MIXES
from .recurrent import recurrent_keys
from .shaped import same_shape, shaped_keys

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
FILE_TYPES = _FILE_TYPES | {name: number for name, (_, number) in MIXES.items()}
QUANTIZATION_VERSION = 2
_OURS = ("architecture", "type", "name", "file_type", "quantization_version", "alignment")
Number = int | float | str | list[bool] | list[int] | None
_TOLERANCE = 1e-6  # numbers are float32 in the file


def architecture_of(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """(GGUF's name, row) of a Hugging Face config. UnsupportedModel: GGUF has none for this model type."""
    model_type = text_config(config).get("model_type")
    for name, row in ARCHITECTURES.items():
        if model_type in row.written:
            return name, row
    raise UnsupportedModel(
        f"model_type {model_type!r} has no GGUF architecture here: write `to` mlx or huggingface", field="to"
    )


def general_keys(checkpoint: Checkpoint, architecture: str, kind: str) -> dict[str, Typed]:
    """general.*, with what a GGUF source says of its author, licence and origin, and how to sample."""
    source = checkpoint.metadata or {}
    keys = {
        "general.architecture": Typed("str", architecture),
        "general.type": Typed("str", "model"),
        "general.name": Typed("str", str(source.get("general.name") or checkpoint.path.name.removesuffix(".gguf"))),
        FILE_TYPE: Typed("u32", FILE_TYPES[kind]),
        "general.quantization_version": Typed("u32", QUANTIZATION_VERSION),
    }
    for name, value in recommended_values(checkpoint.generation_config).items():
        keys[SAMPLING_KEYS[name]] = Typed("i32", min(int(value), 2**31 - 1)) if name == "top_k" else Typed("f32", value)
    for key in source:
        if key.startswith("general.") and key.removeprefix("general.") not in _OURS:
            with suppress(ValueError):  # an array of arrays, which says nothing that a reader knows
                keys[key] = inferred(source[key])
    return keys


def model_keys(config: ModelConfig, architecture: str) -> tuple[dict[str, Typed], dict[str, np.ndarray]]:
    """(the architecture's keys, tensors of rope factors in float32 by their GGUF names)."""
    row = ARCHITECTURES[architecture]
    numbers: dict[str, Number] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size or None,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm_{'' if config.norm_centred else 'rms_'}epsilon": config.norm_eps,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }
    if config.experts:
        numbers["expert_count"] = config.experts.count
        numbers["expert_used_count"] = config.experts.active
        numbers["expert_feed_forward_length"] = config.experts.intermediate_size
        numbers["expert_shared_feed_forward_length"] = config.experts.shared_size or None
        if "num_dense_layers" in row.fields:
            numbers["leading_dense_block_count"] = [*(layer.experts for layer in config.layers), True].index(True)
            numbers["expert_gating_func"] = GATING[config.experts.score]
    if "logits_scaling" in row.fields:
        numbers["attention.scale"] = config.attention_scale
        numbers["embedding_scale"] = config.embedding_scale
        numbers["residual_scale"] = config.residual_scale
        numbers["logit_scale"] = 1 / (config.logit_scale or 1)
    if "logit_scale" in row.fields:
        numbers["logit_scale"] = config.logit_scale
    if row.tied and not config.tie_embeddings:
        raise _unsayable(architecture, "tie_word_embeddings", False, True)
    if row.square and config.num_heads * config.head_dim != config.hidden_size:
        raise _unsayable(architecture, "head_dim", config.head_dim, config.hidden_size / config.num_heads)
    rope, tensors = _rope_keys(config, row)
    numbers |= _window_keys(config, row) | rope | recurrent_keys(config, architecture, row)
    if row.each_slides:
        numbers |= shaped_keys(config, architecture)
    return {f"{architecture}.{key}": _typed(value) for key, value in numbers.items() if value is not None}, tensors


def _typed(value: int | float | str | list[bool] | list[int]) -> Typed:
    if isinstance(value, list):
        return Typed("bool" if isinstance(value[0], bool) else "u32", value, many=True)
    return Typed("str" if isinstance(value, str) else "u32" if isinstance(value, int) else "f32", value)


def _window_keys(config: ModelConfig, row: Architecture) -> dict[str, Number]:
    windows = {layer.window for layer in config.layers} - {None}
    if row.period is None and "sliding_window" not in row.fields:
        return {}
    if row.slides_at not in (None, config.num_layers):  # readers take the key for nothing
        return {}
    window = next(iter(windows), None)
    if window is None:
        _, _, usual = row.fields.get("sliding_window", ("", int, None))
        if usual is None:
            return {}
        # gemma's readers want a window; as long as the context it never slides. phi3's take 0 for none
        return {"attention.sliding_window": 0 if row.model_type == "phi3" else config.max_positions}
    keys: dict[str, Number] = {"attention.sliding_window": window}
    if row.period is not None:
        slides = [layer.window is not None for layer in config.layers]
        keys["attention.sliding_window_pattern"] = _period(slides, row.period)
    return keys


def _period(slides: Sequence[bool], usual: int) -> int | None:
    """The period whose last layer is global; None where the layers have none (then the check below tells it)."""
    for period in (usual, *range(1, len(slides) + 1), 0):
        if list(slides) == [period == 0 or (i + 1) % period != 0 for i in range(len(slides))]:
            return period
    return None


def _rope_keys(config: ModelConfig, row: Architecture) -> tuple[dict[str, Number], dict[str, np.ndarray]]:
    """Of the global layers; the sliding ones' base beside it."""
    turned = [layer for layer in config.layers if layer.rope is not None]
    main = next((layer.rope for layer in turned if layer.window is None), turned[0].rope if turned else None)
    if main is None:
        raise UnsupportedModel("a model without rotary positions has no GGUF architecture here")
    keys: dict[str, Number] = {"rope.dimension_count": main.dims, "rope.freq_base": float(main.theta)}
    local = next((layer.rope for layer in turned if layer.window is not None), None)
    if local is not None and (local != main or "rope_local_base_freq" in row.fields):
        keys["rope.freq_base_swa"] = float(local.theta)
    scaling, tensors = _scaling(main)
    if main.query_growth and "temperature_scale" in row.fields:
        keys["attention.temperature_scale"] = main.query_growth
    if "yarn_log_multiplier" in row.fields and main.scaling == "yarn" and main.attention_factor == 1.0:
        keys["rope.scaling.yarn_log_multiplier"] = 1.0
        scaling.pop("rope.scaling.attn_factor", None)
    if not row.factors.issuperset(tensors):
        raise UnsupportedModel(
            f"GGUF has no rope scaling {main.scaling!r} for {row.model_type}; write `to` mlx instead",
            field="to",
        )
    return keys | scaling, tensors


def _scaling(rope: RopeConfig) -> tuple[dict[str, Number], dict[str, np.ndarray]]:
    match rope.scaling:
        case "default":
            return {}, {}
        case "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}, {}
        case "factors":
            return {}, {ROPE_FACTORS: np.minimum(rope.factors, NEVER).astype(np.float32)}
        case "llama3":
            plain = dataclasses.replace(rope, scaling="default")
            return {}, {ROPE_FACTORS: (inverse_frequencies(plain) / inverse_frequencies(rope)).astype(np.float32)}
        case "longrope":
            keys = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": float(rope.attention_factor)}
            short, long = (np.asarray(part, np.float32) for part in (rope.factors, rope.long_factors))
            return keys | _original(rope), {LONG_FACTORS: long, SHORT_FACTORS: short}
        case _:
            keys = {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(rope.factor),
                "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
                "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
            }
            extra = rope.attention_factor / usual_attention_factor(rope.factor)
            if not math.isclose(extra, 1, rel_tol=_TOLERANCE):
                keys["rope.scaling.attn_factor"] = extra
            return keys | _original(rope), {}


def _original(rope: RopeConfig) -> dict[str, Number]:
    return {"rope.scaling.original_context_length": int(rope.original_max_positions)}


def check_said(
    config: ModelConfig,
    keys: Mapping[str, Typed],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Read the keys again and compare. UnsupportedModel names what GGUF would say differently."""
    metadata = {key: _as_read(value) for key, value in keys.items()}
    architecture = metadata["general.architecture"]
    try:
        read = parse(with_rope_tensors(config_from(metadata, shapes), tensors.__getitem__))
    except CheckpointError as error:
        raise UnsupportedModel(f"GGUF's {architecture} architecture cannot hold this model: {error}") from None
    for field in dataclasses.fields(ModelConfig):
        wanted, said = getattr(config, field.name), getattr(read, field.name)
        if field.name == "layers":
            _check_layers(architecture, config, read)
        elif field.name not in ("model_type", "tie_embeddings") and not _same(
            wanted, said, absent=1.0 if field.name.endswith("_scale") else math.inf
        ):
            raise _unsayable(architecture, field.name, wanted, said)


def _as_read(value: Typed) -> Any:
    return float(np.float32(value.value)) if value.type == "f32" and not value.many else value.value


def _check_layers(architecture: str, config: ModelConfig, read: ModelConfig) -> None:
    for i, (wanted, said) in enumerate(zip(config.layers, read.layers, strict=True)):
        limit = config.max_positions
        windows = [layer.window if layer.window and layer.window < limit else None for layer in (wanted, said)]
        if windows[0] != windows[1]:
            raise _unsayable(architecture, f"a window of layer {i}", *windows)
        if not _same_rope(wanted, said):
            raise _unsayable(architecture, f"the rotation of layer {i}", wanted.rope, said.rope)
        if not _same_mixer(wanted.mixer, said.mixer):
            raise _unsayable(architecture, f"the recurrence of layer {i}", wanted.mixer, said.mixer)
        if not same_shape(wanted, said, config, read, i):
            raise _unsayable(architecture, f"the shape of layer {i}", wanted, said)
        if wanted.experts != said.experts:
            raise _unsayable(architecture, f"experts in layer {i}", wanted.experts, said.experts)


def _same_mixer(wanted: DeltaConfig | ConvConfig | None, said: DeltaConfig | ConvConfig | None) -> bool:
    if not isinstance(wanted, DeltaConfig) or not isinstance(said, DeltaConfig):
        return wanted == said
    names = [field.name for field in dataclasses.fields(DeltaConfig)]
    return all(_same(getattr(wanted, name), getattr(said, name)) for name in names)


def _same_rope(wanted: LayerConfig, said: LayerConfig) -> bool:
    if wanted.rope is None or said.rope is None:
        return wanted.rope is said.rope
    a, b = wanted.rope, said.rope
    if not _same(a.attention_factor, b.attention_factor) or (a.dims, a.neighbours) != (b.dims, b.neighbours):
        return False
    if not _same(a.query_growth, b.query_growth) or (
        a.query_growth and a.original_max_positions != b.original_max_positions
    ):
        return False
    contexts = (1, 1 << 30) if "longrope" in (a.scaling, b.scaling) else (1,)
    return all(
        np.allclose(
            inverse_frequencies(a.for_context(n)), inverse_frequencies(b.for_context(n)), rtol=_TOLERANCE, atol=0
        )
        for n in contexts
    )


def _same(wanted: Any, said: Any, absent: float = math.inf) -> bool:
    if isinstance(wanted, float) or isinstance(said, float):
        numbers = (absent if value is None else value for value in (wanted, said))
        return math.isclose(*numbers, rel_tol=_TOLERANCE)
    return wanted == said


def _unsayable(architecture: str, what: str, wanted: Any, said: Any) -> UnsupportedModel:
    """wanted, said: two values, or two configs, of which only the fields that differ are shown."""
    ours, theirs = _differing(wanted, said) if dataclasses.is_dataclass(wanted or said) else map(repr, (wanted, said))
    return UnsupportedModel(
        f"GGUF's {architecture} architecture cannot express {what} {ours}: its readers take {theirs}; "
        "write `to` mlx or huggingface",
        field="to",
    )


def _differing(wanted: Any, said: Any) -> Iterator[str]:
    """The fields of each that differ; "none" and "some" where only one of them is there."""
    if wanted is None or said is None:
        yield from ("none" if part is None else "some" for part in (wanted, said))
        return
    pairs = {field.name: (getattr(wanted, field.name), getattr(said, field.name)) for field in dataclasses.fields(said)}
    pairs = {name: pair for name, pair in pairs.items() if not _same(*pair)}
    yield "with " + ", ".join(f"{name} {pair[0]!r}" for name, pair in pairs.items())
    yield ", ".join(f"{name} {pair[1]!r}" for name, pair in pairs.items())
