"""What a chat's settings are where nobody chose them, and whose word that is.

Not here: how they are applied (`replies`). Data in, data out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from partita.inference.sampling import recommended, recommended_values

from ...conversation.settings import Settings, usual_sampling
from .asks import ENDLESS

OURS, MODELS = "partita's", "the model's"
_SHOWN = ("max_tokens", "stop", "template_var")
Json = dict[str, Any]


def defaults_of(generation_config: Mapping[str, Any]) -> dict[str, Json]:
    """Of a chat with a model, by name: the value and whose it is.

    Where the makers of a model recommend anything, all that they leave out is what changes nothing.
    """
    given = recommended(generation_config)
    usual, _ = usual_sampling(given)
    own, values = Settings().document(), recommended_values(generation_config)
    found: dict[str, Json] = {}
    for name, value in asdict(usual).items():
        named = given is not None and (name == "temperature" or values.get(name) == value)
        found[name] = {"value": value, "by": MODELS if named else OURS}
    found |= {name: {"value": own[name], "by": OURS} for name in _SHOWN}
    return {**found, ENDLESS: {"value": True, "by": OURS}}
