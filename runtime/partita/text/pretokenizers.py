"""Pre-tokenizers of byte-level BPE vocabularies, by the name that GGUF files give them. Data, no code but a lookup.

Each is a sequence of regular expressions (Oniguruma); text is split at every match, matches and gaps both being kept,
each expression working inside the pieces of the one before. They are the expressions that the models were trained
with, as published in their tokenizer.json; where none is ("default"), the GGUF format's reference reader defines it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedModel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"


def _cl100k(digits: str) -> str:
    return f"{_CONTRACTIONS}|{_WORDS}|{digits}|{_SYMBOLS}|{_SPACES}"


def _cased(digits: str, suffix: str) -> str:
    """Words split where lower case meets upper case (o200k and its kin)."""
    words = f"{_LEAD}{_UPPER}*{_LOWER}+{suffix}|{_LEAD}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥\u3040-ゟ゠-ヿ]+",
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    # cased letters of every script: L without Lo and Lm
    r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    r"[一-龥\u0800-一가-\uD7FF]+",
    r"\p{N}+",
)


@dataclass(frozen=True)
class Pretokenizer:
    """expressions: applied in order. whole_words: a piece that is a token is taken without merging. adds_bos: the
    default where a file does not say. nfc: text is composed first."""

    expressions: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    nfc: bool = False


_GPT2_FAMILY = Pretokenizer((_GPT2,))
_DIGITS = Pretokenizer((r"\p{N}", _GPT2))
_LLAMA3 = Pretokenizer((_cl100k(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_CL100K = Pretokenizer((_cl100k(r"\p{N}{1,3}"),))
_QWEN2 = Pretokenizer((_cl100k(r"\p{N}"),), nfc=True)
_O200K = Pretokenizer((_cased(r"\p{N}{1,3}", _CONTRACTIONS + "?"),))

_GROUPS: tuple[tuple[str, Pretokenizer], ...] = (
    (
        "gpt-2 gpt2 mpt olmo phi-2 jais trillion granite-docling gigachat mellum exaone4 a.x-4.0 jina-es jina-de "
        "jina-v2-es jina-v2-de modern-bert",
        _GPT2_FAMILY,
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGITS),
    ("default", Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", _LLAMA3),
    ("dbrx smaug-bpe chatglm-bpe glm4", _CL100K),
    ("qwen2 deepseek-r1-qwen kormo megrez", _QWEN2),
    ("stablelm2 hunyuan solar-open grok-2", Pretokenizer((_cl100k(r"\p{N}"),))),
    (
        "qwen35",
        Pretokenizer(
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            ),
            nfc=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 minimax-m2", _O200K),
    # digits by threes from the right, as they are written in numbers
    ("tiny_aya cohere2moe", Pretokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", *_O200K.expressions))),
    ("tekken", Pretokenizer((_cased(r"\p{N}", ""),), whole_words=True, adds_bos=True)),
    ("deepseek-llm", Pretokenizer(_DEEPSEEK_LLM)),
    (
        "deepseek-coder",
        Pretokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥\u0800-一가-\uD7FF]+", r"\p{N}")),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm", Pretokenizer(_DEEPSEEK3)),
    ("falcon", Pretokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    ("bloom poro-chat gpt3-finnish", Pretokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",))),
    ("viking", Pretokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"))),
    (
        "seed-coder",
        Pretokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        Pretokenizer(
            (rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
        ),
    ),
)
GEMMA4 = Pretokenizer((r"\n+",), adds_bos=True)
"""Of vocabularies of the kind "gemma4", which have no name for it."""


def names() -> tuple[str, ...]:
    """Every name that `find` knows, sorted."""
    return tuple(sorted(name for group, _ in _GROUPS for name in group.split()))


def name_of(pretokenizer: Pretokenizer) -> str | None:
    """The best-known name of one with these expressions; None if there is none. Its `adds_bos` does not count."""
    wanted = _essence(pretokenizer)
    return next((group.split()[0] for group, known in _GROUPS if _essence(known) == wanted), None)


def _essence(pretokenizer: Pretokenizer) -> tuple[tuple[str, ...], bool, bool]:
    """What splits text: a last choice of space only takes what would be a gap, which is kept as it is."""
    expressions = tuple(expression.removesuffix(r"|\s+") for expression in pretokenizer.expressions)
    return expressions, pretokenizer.whole_words, pretokenizer.nfc


def gpt2() -> str:
    """The expression that the `tokenizers` library's byte-level step has built in."""
    return _GPT2


def published() -> frozenset[str]:
    """Every expression that a model was trained with, as its tokenizer.json has it."""
    all_known = (GEMMA4, *(pretokenizer for _, pretokenizer in _GROUPS))
    known = {expression for pretokenizer in all_known for expression in pretokenizer.expressions}
    return frozenset(known | {expression + r"|\s+" for expression in known if expression.endswith(r"\s+(?!\S)")})


def find(name: str) -> Pretokenizer:
    """The pre-tokenizer called `name` in `tokenizer.ggml.pre`; UnsupportedModel names an unknown one."""
    for group, pretokenizer in _GROUPS:
        if name in group.split():
            return pretokenizer
    raise UnsupportedModel(
        f"tokenizer.ggml.pre: the pre-tokenizer {name!r} is not known; convert from the Hub's folder"
    )
