"""What tensors are called: the same tensor has one name here, whatever tools and models put in front of it.

    base_model.model.   PEFT             module.   torch's data parallelism        _orig_mod.   torch.compile
    _fsdp_wrapped_module., _checkpoint_wrapped_module.   torch, in the middle of a name
    model., language_model.model., model.language_model., model.text_model.
                        a text decoder's place, alone and in models that see as well

Not here: what a family calls its parts (`families.Names`), GGUF's names. Invariant: two tensors of one checkpoint never
get one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..errors import CheckpointError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_TOOLS = re.compile(
    r"^(?:base_model\.model\.|module\.)+|(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PLACE = re.compile(r"^(?:(?:model|language_model|text_model)\.)+")
_TEXT = (
    *("layers.", "embed_tokens.", "norm.", "embedding_norm.", "lm_head."),
    *("embed_tokens_per_layer.", "per_layer_model_projection.", "per_layer_projection_norm."),
)
_OTHERS = re.compile(r"(?:vision_\w+|embed_vision|embed_audio|visual|audio_\w+|multi_modal_projector|connector)(?=\.)")
# of a module's making, the same for every checkpoint: rope's tables and masks, which old files carry along
_CONSTANT = re.compile(
    r"(?:.*\.)?(?:rotary_\w+\.(?:\w*inv_freq|cos_cached|sin_cached)|(?:self_)?(?:attn|attention)\.(?:masked_)?bias)"
)

_BY_NUMBER = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_NUMBERED = re.compile(r"(?<=\.feed_forward\.)(?:w[123]|(?:gate|up|down)_proj)(?=\.)")

T = TypeVar("T")


def unwrapped(name: str) -> str:
    """A name without what training tools put around modules."""
    return _TOOLS.sub("", name)


def text_name(name: str) -> str | None:
    """A tensor's name in its text decoder by itself, `model.layers.0…` or `lm_head…`; else None."""
    plain = _PLACE.sub("", name)
    if not plain.startswith(_TEXT):
        return None
    return plain if plain.startswith("lm_head.") else f"model.{plain}"


def by_projection(name: str) -> str:
    """A name whose dense MLP's matrices are called by what they do, as mlx-lm calls LFM2-MoE's; published are w1, w3
    and w2."""
    return _NUMBERED.sub(lambda found: _BY_NUMBER.get(found[0], found[0]), name)


def by_number(name: str) -> str:
    """The same the other way about."""
    numbers = {called: number for number, called in _BY_NUMBER.items()}
    return _NUMBERED.sub(lambda found: numbers.get(found[0], found[0]), name)


def part_beside_text(name: str) -> str | None:
    """The part that sees or hears, which a text does not pass through, that a tensor belongs to; None for others."""
    found = _OTHERS.match(_PLACE.sub("", name))
    return None if found is None else found[0]


def predicts_further(name: str) -> bool:
    """Whether a tensor belongs to what guesses further tokens than the next, which nobody runs here."""
    return _PLACE.sub("", name).startswith("mtp.")


def is_constant(name: str) -> bool:
    """Whether a tensor repeats what its config says, so that nobody reads it."""
    return _CONSTANT.fullmatch(name) is not None


def canonical(tensors: Mapping[str, T], where: str, *, alone: bool) -> dict[str, T]:
    """A checkpoint's tensors by their names here, without its constants.

    alone: of a model that is a text decoder and nothing else. CheckpointError: two that come to the same name.
    """
    found: dict[str, T] = {}
    for stored, tensor in tensors.items():
        name = unwrapped(stored)
        name = (text_name(name) or name) if alone else name
        if is_constant(name):
            continue
        if name in found:
            raise CheckpointError(f"{where}: two tensors are called {name!r}, one of them as {stored!r}")
        found[name] = tensor
    return found


def adds_one(name: str) -> bool:
    """Whether this is a norm that a `1 + w` family adds one to: each but the one behind a gated delta rule."""
    return name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def chooses(name: str) -> bool:
    """Whether a tensor is added to scores by which experts are chosen: rounded, it chooses others."""
    return name.endswith((".expert_bias", ".e_score_correction_bias"))


class Index:
    """Names to be looked up, by themselves or wherever they stand in their model; of two alike the first."""

    def __init__(self, names: Iterable[str]):
        self._names = dict.fromkeys(names)
        self._anywhere: dict[str, str] = {}
        for name in self._names:
            self._anywhere.setdefault(_everywhere(name), name)

    def find(self, name: str) -> str | None:
        """The name here of what is called `name` elsewhere."""
        return name if name in self._names else self._anywhere.get(_everywhere(name))


def _everywhere(name: str) -> str:
    """What two names have in common that are one tensor's elsewhere."""
    return by_projection(_PLACE.sub("", name))
