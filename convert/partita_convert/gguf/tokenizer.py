"""A checkpoint's tokenizer as GGUF keys.

Not here: how a folder keeps its vocabulary (`vocabulary`). Invariant: the keys, read by our own reader, give the
source's ids for texts of many scripts; a vocabulary for which they do not is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from partita.checkpoint.base import Checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.text.from_folder import Configs
from partita.text.load import load_tokenizer, tokenizer_from_gguf
from partita.text.sentencepiece_model import UNKNOWN
from partita.text.tokenizer import Tokenizer

from .file import Typed, inferred
from .vocabulary import Vocabulary, read_vocabulary

_PREFIX = "tokenizer."
_TYPES = {"tokens": "str", "merges": "str", "scores": "f32", "token_type": "i32"}
# without U+2581, which sentencepiece takes for a space, and a token of several spaces may not
SAMPLES = (
    "Hello, world! It's 12:45 and I'd say we're THEY'LL don't  know\tit.\r\n\n  x = foo(bar[1:23456], 'y') # ok\n",
    "Ünïcödé naïve façade, Ελληνικά και русский текст, עברית, العربية, हिन्दी में पाठ",
    "ไทย, 한국어 문장, 日本語のテキスト、中文文本。",
    "emoji 👩\u200d👩\u200d👧🏳\ufe0f\u200d🌈🚀 e\u0301 \ufb01 \u00a0\u2003\u200b\ufeff ½ Ⅷ ٣",
    "1234567890 3.14159 -> <= != ``` $x^2$ \\n @user #tag",
    "   leading and trailing   ",
    "a" * 40 + "\n" * 5 + " " * 17 + "_" * 9 + "=-" * 6,
    "<|im_start|>user\n<s>[INST] <start_of_turn> </s> <0x0A> </think> <tool_call>",
    "def f(x):\n    return {'a': x ** 2, \"b\": [y for y in x if y % 3 == 0]}\n\n\nclass A:\n\tpass",
    "\x00\x01\x7f\u2028\U0010ffff",
)


def tokenizer_keys(
    checkpoint: Checkpoint, vocab_size: int, general: Mapping[str, Typed] = MappingProxyType({})
) -> dict[str, Typed]:
    """tokenizer.*, with as many tokens as the embedding has rows. general: the file's other keys, by some of which
    readers know how a vocabulary is used.

    UnsupportedModel: a vocabulary that GGUF cannot say, named. CheckpointError: more tokens than rows, damaged files.
    """
    if checkpoint.metadata is not None:
        return _copied(checkpoint.metadata, vocab_size)
    tokenizer = load_tokenizer(checkpoint)
    configs = Configs.read(checkpoint.path)
    architecture = general.get("general.architecture")
    merged = architecture is not None and architecture.value == "gemma4"
    vocabulary = read_vocabulary(checkpoint.path, merged=merged)
    if len(vocabulary.tokens) > vocab_size:
        raise CheckpointError(
            f"{checkpoint.path.name}: {len(vocabulary.tokens)} tokens, and an embedding of {vocab_size} rows"
        )
    vocabulary.pad(vocab_size)
    keys = _vocabulary_keys(vocabulary) | _id_keys(vocabulary, tokenizer, configs)
    keys["tokenizer.ggml.add_bos_token"] = Typed("bool", tokenizer.adds_bos)
    if configs.tokenizer.get("add_eos_token"):
        keys["tokenizer.ggml.add_eos_token"] = Typed("bool", True)
    if tokenizer.chat_template:
        keys["tokenizer.chat_template"] = Typed("str", tokenizer.chat_template)
    if tokenizer.tool_template:
        keys["tokenizer.chat_template.tool_use"] = Typed("str", tokenizer.tool_template)
    _check(checkpoint, tokenizer, {**general, **keys})
    return keys


def _vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Typed]:
    keys = {
        "tokenizer.ggml.model": Typed("str", vocabulary.kind),
        "tokenizer.ggml.pre": Typed("str", vocabulary.kind if vocabulary.kind == "gemma4" else vocabulary.pre),
        "tokenizer.ggml.tokens": Typed("str", vocabulary.tokens, many=True),
        "tokenizer.ggml.token_type": Typed("i32", vocabulary.types, many=True),
    }
    if vocabulary.kind != "llama":
        keys["tokenizer.ggml.merges"] = Typed("str", vocabulary.merges, many=True)
    if vocabulary.kind == "gpt2":
        return keys
    return keys | {
        "tokenizer.ggml.scores": Typed("f32", vocabulary.scores, many=True),
        "tokenizer.ggml.add_space_prefix": Typed("bool", vocabulary.space_prefix),
    }


def _id_keys(vocabulary: Vocabulary, tokenizer: Tokenizer, configs: Configs) -> dict[str, Typed]:
    """Ids by role. Of the ends that the configs list beside the tokenizer's own, one is called the end of a turn and
    one the end of a message: GGUF's readers stop at each."""
    index = {token: i for i, token in enumerate(vocabulary.tokens)}
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for role, key in (("unk_token", "unknown"), ("pad_token", "padding")):
        literal = configs.role(role)
        ids[key] = None if literal is None else index.get(literal)
    if ids["unknown"] is None and vocabulary.kind != "gpt2":
        ids["unknown"] = next((i for i, kind in enumerate(vocabulary.types) if kind == UNKNOWN), None)
    ends = [i for i in dict.fromkeys(configs.ids("eos_token_id")) if i != tokenizer.eos_id and i < len(index)]
    ends.sort(key=lambda i: vocabulary.tokens[i] == "<|eom_id|>")
    if len(ends) > 2:
        raise UnsupportedModel(f"{len(ends) + 1} ends of text, of which GGUF can say three: shorten eos_token_id")
    ids |= dict(zip(("eot", "eom"), ends, strict=False))
    return {f"tokenizer.ggml.{key}_token_id": Typed("u32", i) for key, i in ids.items() if i is not None}


def _copied(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, Typed]:
    """A GGUF source's own keys. Its tokens are as many as its embedding's rows, or readers would refuse it."""
    if "tokenizer.ggml.tokens" not in metadata:
        raise CheckpointError("the file carries no vocabulary (tokenizer.ggml.tokens)")
    keys: dict[str, Typed] = {}
    for key in metadata:
        if key.startswith(_PREFIX):
            kind, value = _TYPES.get(key.rpartition(".")[2]), metadata[key]
            try:
                keys[key] = Typed(kind, value, many=True) if kind and isinstance(value, list) else inferred(value)
            except ValueError as error:
                raise CheckpointError(f"{key}: {error}, which no reader knows") from None
    if len(metadata["tokenizer.ggml.tokens"]) != vocab_size:
        raise CheckpointError(
            f"the file has {len(metadata['tokenizer.ggml.tokens'])} tokens, and an embedding of {vocab_size} rows"
        )
    return keys


def _check(checkpoint: Checkpoint, source: Tokenizer, keys: Mapping[str, Typed]) -> None:
    written = tokenizer_from_gguf({key: value.value for key, value in keys.items()})
    for text in (*SAMPLES, source.chat_template or "", _between(source, written)):
        for specials in (False, True):
            if written.encode(text, specials=specials) != source.encode(text, specials=specials):
                raise UnsupportedModel(
                    f"{checkpoint.path.name}: as a GGUF vocabulary its tokenizer would split {text[:40]!r} otherwise; "
                    "write `to` mlx or huggingface",
                    field="to",
                )


def _between(source: Tokenizer, written: Tokenizer) -> str:
    """A text in which white space and words stand on both sides of control tokens that both have."""
    names = [name for name in source.controls if name in written.controls][:64]
    return "".join(f"{name}\n a{name}a \n{name} " for name in names)
