"""Fields that several dialects share: how a reply is sampled, and how much is thought. Data in, data out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from partita.text.chat_template import is_variable

from .. import fields
from ..asked import Refused

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_TEMPLATES_EFFORT = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_LEAST = 1e-3  # temperatures below are 0 for a sampler, and for clients that dare not ask for it


class Sampled(fields.Body, kw_only=True):
    """Base of bodies with OpenAI's names of sampling, and those that local servers add."""

    temperature: fields.Temperature | None = None
    top_p: fields.Share | None = None
    top_k: fields.TopK | None = None
    min_p: fields.Share | None = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.Repetition | None = None
    repeat_penalty: fields.Repetition | None = None
    seed: fields.Seed | None = None

    def sampling(self, number: int = 0) -> dict[str, float | int]:
        """By fields of `Sampling`. number: of the reply, of several to one request: each has a seed of its own."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty,
            "seed": None if self.seed is None else self.seed + number,
        }
        return bounded(given)


def bounded(given: Mapping[str, float | int | None]) -> dict[str, float | int]:
    """The same in values that `Sampling` has: what clients write for "the most probable" and "all"."""
    found = {name: value for name, value in given.items() if value is not None}
    if found.get("temperature", 1) < _LEAST:
        found["temperature"] = 0.0
    if found.get("top_p") == 0:
        found |= {"top_p": 1.0, "top_k": 1}
    if found.get("top_k") == -1:
        found["top_k"] = 0
    return found


def effort_variables(effort: str | None, field: str) -> dict[str, Any]:
    """What a template is given for an effort of reasoning. Raises Refused for one that nobody knows."""
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise Refused(f"`{field}` must be one of {', '.join(EFFORTS)}, got {effort!r}", field=field)
    return {"reasoning_effort": _TEMPLATES_EFFORT.get(effort, effort), **thought_variables(effort != "none")}


def thought_variables(on: bool) -> dict[str, Any]:
    """The same for thoughts altogether, in the words of Qwen's templates and of Granite's and DeepSeek's."""
    return {"enable_thinking": on, "thinking": on}


def variables(given: Mapping[str, Any] | None, field: str) -> dict[str, Any]:
    """What a client gives to the template itself. Raises Refused for a name that the conversation has."""
    for name in given or {}:
        if not is_variable(name) or name == "tools":
            raise Refused(f"`{field}`: {name[:100]!r} is not a name of a variable", field=field)
    return dict(given or {})


def biases(given: Mapping[str, float] | None) -> dict[int, float]:
    """`logit_bias`, by tokens. Raises Refused."""
    field = "logit_bias"
    if given and not all(name.isdecimal() and len(name) < 10 for name in given):
        raise Refused(f"`{field}` must have tokens' ids as its keys", field=field)
    return {int(name): value for name, value in (given or {}).items()}
