"""Replies as models write them, recorded with what they mean: the fixtures of canitoolcall, which judges engines."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from canitoolcall.checks import case_status, run_checks
from canitoolcall.fixtures import Fixture, load_families, load_fixtures
from canitoolcall.results import Observation, ParsedToolCall, ParseResult, Status
from tests.chat_forms import write_tokenizer

from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder
from partita.text.reply.parser import Part, ReplyFormat, ReplyParser
from partita.text.tokenizer import Tokenizer

FORMS = {
    "qwen3-hermes": "thinking",
    "qwen3-xml": "coder",
    "gpt-oss": "harmony",
    "gemma4": "gemma4",
    "mistral": "mistral",
    "llama": "llama",
    "glm": "glm",
    "deepseek": "deepseek",
}
OTHERS = ("Llama-4", "V3.2", "V4")  # models whose notations are not read
# literals of control tokens stand in these as text, too, which only the ids of the real vocabulary tell apart
WRITTEN_OUT = {
    "gpt-oss/harmony-marker-in-arguments",
    "gpt-oss/harmony-marker-in-reasoning",
    "mistral/llamacpp-ministral3-marker-in-reasoning",
    "mistral/v13think-marker-in-arguments",
}
FAMILIES = load_families()


def recorded(family: str) -> list[Fixture]:
    found = load_fixtures(families=[family])
    return [
        fixture
        for fixture in found
        if fixture.id not in WRITTEN_OUT and not any(name in fixture.reference_model for name in OTHERS)
    ]


def prompt_of(fixture: Fixture) -> str:
    """The beginning of the reply that stands in the prompt."""
    reference = FAMILIES[fixture.family].reference_for(fixture.reference_model)
    assert reference is not None
    given = fixture.generation_prompt
    text = reference.default_generation_prompt if given is None else given
    return (text or "").replace("<|assistant|>", "<|im_start|>assistant")  # GLM's, in our vocabulary


def result(parts: Sequence[Part]) -> ParseResult:
    speech, thought = ("".join(part.text for part in parts if part.kind == kind) for kind in ("speech", "thought"))
    calls = [part.call for part in parts if part.call is not None and part.call.error is None]
    return ParseResult(
        content=speech or None,
        reasoning_content=thought or None,
        tool_calls=tuple(ParsedToolCall(call.name, call.arguments) for call in calls),
    )


def whole(tokenizer: Tokenizer, text: str) -> Iterator[int | str]:
    for i, piece in enumerate(tokenizer.control_pattern.split(text)):
        yield tokenizer.controls[piece] if i % 2 else piece


def grouped(items: Sequence[int | str], seed: int) -> Iterator[int | str]:
    """Texts cut at random places."""
    chance = random.Random(seed)
    for item in items:
        while isinstance(item, str) and len(item) > 1:
            size = chance.randint(1, 8)
            yield item[:size]
            item = item[size:]
        yield item


@pytest.mark.parametrize("family", FORMS)
def test_recorded_replies_mean_what_they_should(family, tmp_path):
    write_tokenizer(tmp_path, FORMS[family])
    tokenizer = tokenizer_from_folder(tmp_path)
    template = ChatTemplate.of(tokenizer)
    form = ReplyFormat.of(tokenizer, template)
    tokenizer.chat_template = f"{tokenizer.chat_template}<think></think>"
    older = ReplyFormat.of(tokenizer, template)  # Magistral wrote its thoughts so before it had tokens for them
    fixtures = recorded(family)
    failed = {}
    for fixture in fixtures:
        prompt = tokenizer.encode(f"?{prompt_of(fixture)}", bos=False, specials=True)

        def read(items: Sequence[int | str], fixture: Fixture = fixture, prompt: list[int] = prompt) -> ParseResult:
            known = older if "2506" in fixture.reference_model else form
            parser = ReplyParser(known, tokenizer, prompt, tools=fixture.tools)
            parts = [part for x in items for part in (parser.push(x) if isinstance(x, int) else parser.push_text(x))]
            return result([*parts, *parser.finish()])

        items = list(whole(tokenizer, fixture.raw_output))
        streams = {f"rand:{seed}:8": read(list(grouped(items, seed))) for seed in range(1, 4)}
        streams["token"] = read(tokenizer.encode(fixture.raw_output, bos=False, specials=True))
        rows = run_checks(fixture, FAMILIES[family], Observation(nonstream=read(items), streams=streams))
        if case_status(rows) not in (Status.PASS, Status.SOFT_PASS):
            failed[fixture.id] = [row.detail for row in rows if row.status not in (Status.PASS, Status.SOFT_PASS)]
    assert not failed
    assert len(fixtures) > 20
