"""What `/set` can change, as one value. Which values make sense is the runtime's business; here text becomes values."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from partita.errors import DataError
from partita.files.typed import Misfit, typed
from partita.inference.sampling import Sampling
from partita.language_model import DEFAULT_MAX_TOKENS
from partita.text.chat_template import is_variable, parse_variable
from partita.text.stop_strings import StopStrings

CONVERSATION = Sampling(temperature=0.7, min_p=0.05)
"""How a conversation samples where its model recommends nothing: always taking the most probable token, small models
repeat themselves without end."""
SAMPLING = tuple(each.name for each in fields(Sampling))
NAMES = (*SAMPLING, "max_tokens", "system", "stop", "template_var", "thoughts", "plain", "stats")
SWITCHES = ("plain", "stats")
KEPT = (*SAMPLING, "max_tokens", "system", "stop", "template_var")
"""Those that belong to a chat, and not to whoever looks at it."""
SHOW, FOLD, HIDE = THOUGHTS = ("show", "fold", "hide")


@dataclass(frozen=True)
class Settings:
    """How replies are made. Raises DataError for a value that the runtime does not take.

    template_var: what the chat template is given besides the conversation, by name. thoughts: how much of them a person
    sees: all, a line at a time, or nothing. plain: a terminal shows Markdown as the model wrote it. stats: the prompt's
    speed and the peak of memory stand below a reply, too.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    system: str | None = None
    template_var: Mapping[str, Any] = field(default_factory=dict)
    thoughts: str = SHOW
    plain: bool = False
    stats: bool = False

    def __post_init__(self) -> None:
        StopStrings(self.stop)
        if self.thoughts not in THOUGHTS:
            raise DataError(f"`thoughts` must be one of {', '.join(THOUGHTS)}, got {self.thoughts!r}", field="thoughts")
        if self.max_tokens < 1:
            raise DataError(f"`max_tokens` must be >= 1, got {self.max_tokens}", field="max_tokens")

    def get(self, name: str) -> Any:
        return getattr(self.sampling if name in SAMPLING else self, name)

    def set(self, name: str, value: Any) -> Settings:
        """These settings with one changed; value: of the setting's own type."""
        if name in SAMPLING:
            return replace(self, sampling=replace(self.sampling, **{name: value}))
        return replace(self, **{name: value})

    def set_text(self, name: str, text: str) -> Settings:
        """These settings with one changed to what a person typed. Nothing, or "none", takes away what may be absent."""
        if name not in NAMES:
            raise _unknown(name)
        if name in SWITCHES:
            return self.set(name, switched(name, text))
        absent = text in ("", "none")
        if name == "thoughts":
            return self.set(name, text)
        if name == "system":
            return self.set(name, None if absent else text)
        if name == "stop":
            return self.set(name, () if absent else (unescaped(text),))
        if name == "template_var":
            return self.set(name, {} if absent else {**self.template_var, **dict([parse_variable(text)])})
        if name == "seed" and absent:
            return self.set(name, None)
        return self.set(name, _fitted(name, text, strict=False))

    def seeded(self) -> Sampling:
        """The sampling of one reply. Where chance plays a part and no seed is given, one is drawn and can be shown."""
        if self.sampling.temperature == 0 or self.sampling.seed is not None:
            return self.sampling
        return replace(self.sampling, seed=secrets.randbelow(2**32))

    def document(self) -> dict[str, Any]:
        own = {"max_tokens": self.max_tokens, "stop": list(self.stop), "system": self.system}
        shown = {"thoughts": self.thoughts, "plain": self.plain, "stats": self.stats}
        return {**asdict(self.sampling), **own, "template_var": dict(self.template_var), **shown}

    @classmethod
    def over(cls, usual: Sampling, given: Mapping[str, Any]) -> Settings:
        """What a person gave, over what is usual. A temperature of 0 is meant exactly: nothing usual is added to it."""
        start = Sampling() if given.get("temperature") == 0 else usual
        return cls.of({**asdict(start), **given})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """From option values or a saved document. Raises DataError for what is not a setting or of the wrong type."""
        settings = cls()
        for name, value in values.items():
            settings = settings.set(name, _fitted(name, value))
        return settings


def _fitted(name: str, value: Any, *, strict: bool = True) -> Any:
    """A value in the type of its setting; of a text that a person typed where not strict. DataError names both."""
    if name not in NAMES:
        raise _unknown(name)
    kind = get_type_hints(Sampling if name in SAMPLING else Settings)[name]
    try:
        fitted = typed(value, kind, f"`{name}`", strict=strict)
    except Misfit as error:
        raise DataError(str(error), field=name) from None
    if name == "template_var" and not all(map(is_variable, fitted)):
        raise DataError(f"`{name}`: one of {', '.join(fitted)} is not a name of a variable", field=name)
    return fitted


def _unknown(name: str) -> DataError:
    return DataError(f"unknown setting {name!r}; expected one of {', '.join(NAMES)}")


def switched(name: str, text: str) -> bool:
    """What "on" or "off" means. Raises DataError for anything else."""
    values = {"on": True, "true": True, "off": False, "false": False}
    if text.lower() not in values:
        raise DataError(f"`{name}` must be on or off, got {text!r}", field=name)
    return values[text.lower()]


def usual_sampling(recommended: Sampling | None) -> tuple[Sampling, str]:
    """How a conversation samples unless it is given other settings, and whose word that is."""
    return (CONVERSATION, "default") if recommended is None else (recommended, "the model's")


def unescaped(text: str) -> str:
    r"""`\n` and `\t` as typed by a person who has one line for it."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
