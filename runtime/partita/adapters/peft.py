"""PEFT's adapter_config.json and tensor names, as data.

Invariants: a setting that would change the result and is not done is refused by name; a
pattern from a config is matched only if it is of a form that cannot take long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..checkpoint.names import unwrapped
from ..errors import CheckpointError, UnsupportedModel
from ..files.bounded import is_table

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
# settings that change what a weight becomes, or where it is, in ways that are not done here
_REFUSED = (
    *("fan_in_fan_out", "lora_bias", "layer_replication", "alora_invocation_tokens", "trainable_token_indices"),
    *("target_parameters", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config"),
    *("monteclora_config", "megatron_config"),
)
# ways of choosing the first A and B that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, …) change it
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
MAX_MATCHES, MAX_NAME = 2_000_000, 256
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")
# letters, dots, classes, groups and choices; a repetition only of one such thing, never of a group
_QUICK = re.compile(r"(?:[\w.^$|()-]|\\[.dw]|\[[\w-]+\]|(?:(?<=[.\]])|(?<=\\[dw]))[+*])*")


@dataclass(frozen=True)
class Settings:
    """ranks, alphas: pairs of a pattern and its value; the first that matches a module's name counts."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    dropout: float
    ranks: tuple[tuple[re.Pattern[str], Any], ...]
    alphas: tuple[tuple[re.Pattern[str], Any], ...]

    def check_work(self, modules: Collection[str]) -> None:
        """UnsupportedModel where matching would take long: many patterns times many modules, or endless names."""
        work = len(modules) * (len(self.ranks) + len(self.alphas))
        if work and (work > MAX_MATCHES or max(map(len, modules)) > MAX_NAME):
            raise UnsupportedModel(
                f"{CONFIG}: too many patterns, or too long names, to be matched: {len(modules)} modules"
            )

    def of(self, module: str) -> tuple[int, float]:
        """(rank, scale) of one module."""
        rank = _matched(self.ranks, module, self.rank)
        alpha = _matched(self.alphas, module, self.alpha)
        return int(rank), alpha / (math.sqrt(rank) if self.rslora else rank)


def settings(config: Mapping[str, Any]) -> Settings:
    """Check a config. CheckpointError: a damaged one. UnsupportedModel: a setting that is not implemented, by name."""
    if config["peft_type"] != "LORA":
        raise UnsupportedModel(f"{CONFIG}: peft_type {config['peft_type']!r} is not implemented, LORA is")
    for key in _REFUSED:
        if config.get(key):
            raise UnsupportedModel(f"{CONFIG}: {key} {config[key]!r} is not implemented")
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(f"{CONFIG}: bias {config['bias']!r} is not implemented: trained biases")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UnsupportedModel(
            f"{CONFIG}: init_lora_weights {start!r} changed the base's weights as well: have PEFT convert it to a "
            "plain LoRA first"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not is_number(alpha):
        raise CheckpointError(f"{CONFIG}: r {rank!r} and lora_alpha {alpha!r} are not a count and a number")
    return Settings(
        rank,
        float(alpha),
        bool(config.get("use_rslora")),
        bool(config.get("use_dora")),
        dropout(config.get("lora_dropout")),
        _patterns(config, "rank_pattern"),
        _patterns(config, "alpha_pattern"),
    )


def is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e30  # false for NaN


def dropout(value: Any) -> float:
    """Of training, which loading ignores: anything else than a number counts as none."""
    return float(value) if is_number(value) else 0.0


def _patterns(config: Mapping[str, Any], key: str) -> tuple[tuple[re.Pattern[str], Any], ...]:
    """By PEFT's rule a pattern must match the end of a module's name, from a dot on."""
    table: Any = config.get(key) or {}
    if not is_table(table):
        raise CheckpointError(f"{CONFIG}: {key} is not a table of modules")
    found: list[tuple[re.Pattern[str], Any]] = []
    for pattern, value in table.items():
        whole = type(value) is int and 0 < value < 1 << 31
        if not (whole if key == "rank_pattern" else is_number(value)):
            raise CheckpointError(f"{CONFIG}: {key} gives {pattern!r} the value {value!r}")
        if len(pattern) > 500 or sum(map(pattern.count, "+*")) > 2 or not _QUICK.fullmatch(pattern):
            raise UnsupportedModel(f"{CONFIG}: {key}: the pattern {pattern!r} is too involved to be matched safely")
        try:
            found.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, RecursionError):
            raise CheckpointError(f"{CONFIG}: {key}: {pattern!r} is not a regular expression") from None
    return tuple(found)


def _matched(patterns: Iterable[tuple[re.Pattern[str], Any]], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def grouped(names: Iterable[str], file: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(module to its parts' stored names, replaced tensor to its stored name), by the base's names.

    UnsupportedModel for a tensor of another kind.
    """
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for stored in names:
        name = unwrapped(stored)
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            parts.setdefault(name.removesuffix(suffix), {})[_SUFFIXES[suffix]] = stored
            continue
        plain = _WRAPPERS.sub("", name)
        if not plain.endswith(".weight") or ".lora_" in plain or "token_adapter" in plain or stored == name:
            raise UnsupportedModel(f"{file}: the tensor {stored!r} is not part of a supported LoRA adapter")
        replaced[plain] = stored
    return parts, replaced
