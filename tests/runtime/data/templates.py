"""Templates of every kind, a conversation, and what is trained of it in double brackets."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from partita.data.encode import Encoder
from partita.data.records import parse
from partita.text.tokenizer import Tokenizer

CONTROLS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "</s>", "<s>"),
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# marks the header and leaves the end token out, as templates do that were not written for training
MARKED_BADLY = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
THINKS = (  # thoughts stay in the last turn only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # finished turns do not
MOVES = "{{ messages | length }}: " + CHATML
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a fox?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "the end"},
]


def train_library(folder: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    words = ["the fox and the dog a fox the end why assistant user system\n\n\n\n be brief"]
    library.train_from_iterator(words, trainers.BpeTrainer(vocab_size=310, **options))
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROLS])
    library.save(str(folder / "tokenizer.json"))


def shown(tokenizer: Tokenizer, document) -> str:
    """The text of a document with what is trained in double brackets."""
    runs = groupby(zip(document.ids, document.trained, strict=True), key=lambda pair: pair[1])
    texts = [(tokenizer.decode([i for i, _ in run], specials=True, continues=True), flag) for flag, run in runs]
    return "".join(f"[[{text}]]" if flag else text for text, flag in texts)


def encoded(made, value: Any, **variables: Any) -> list[str]:
    tokenizer, template = made
    return [shown(tokenizer, d) for d in Encoder(tokenizer, template, variables).encode(parse(value))]
