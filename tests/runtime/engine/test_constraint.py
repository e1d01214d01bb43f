"""Constraints: what a reply may be in each of their forms, at every token; what cannot be enforced says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jsonschema import validate
from tests.chat_forms import write_tokenizer

from partita.engine.constraint import Grammars, Matcher
from partita.engine.grammars import Vocabulary
from partita.engine.request import MAX_GRAMMAR, Constraint
from partita.errors import DataError
from partita.text.load import tokenizer_from_folder

from .masks import allowed, drawn

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CALL = 'start: "\\n"? "{" /[a-c]{1,3}/ "}\\n</tool_call>"'
Made = Callable[..., Vocabulary]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """That of a form of replies."""
    known: dict[tuple[str, int], Vocabulary] = {}

    def make(form: str = "thinking", more: int = 0) -> Vocabulary:
        if (form, more) not in known:
            folder: Path = tmp_path_factory.mktemp(form)
            write_tokenizer(folder, form)
            tokenizer = tokenizer_from_folder(folder)
            known[form, more] = Vocabulary(tokenizer, tokenizer.vocab_size + more)
        return known[form, more]

    return make


def schema(value: object = CITY, **more: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value), **more)  # type: ignore[arg-type]


def follow(made: Vocabulary, constraint: Constraint, text: str, prompt: str = "") -> Matcher:
    """The matcher behind a text, each token of which it allowed."""
    encode = made.tokenizer.encode
    matcher = Matcher(made, constraint)
    matcher.begin(encode(prompt, bos=False, specials=True) if prompt else [])
    for token in encode(text, bos=False, specials=True):
        mask = matcher.mask()
        assert mask is None or token in allowed(mask), made.tokenizer.token_text(token)
        assert matcher.forced()[:1] in ([], [token])
        matcher.push(token)
    return matcher


def next_texts(matcher: Matcher, made: Vocabulary) -> set[str] | None:
    mask = matcher.mask()
    return None if mask is None else {made.tokenizer.token_text(token) for token in allowed(mask)}


# ---------------------------------------------------------------- from the first token on


@pytest.mark.parametrize("more", [0, 1, 40])
def test_a_schema_is_followed_to_its_end(vocabulary: Made, more: int) -> None:
    made = vocabulary(more=more)
    matcher = follow(made, schema(), '{"city": "Os", "days": 2')
    mask = matcher.mask()
    assert mask is not None
    assert mask.dtype == np.int32
    assert mask.shape == (-(-made.size // 32),)
    assert [made.tokenizer.token_text(token) for token in allowed(mask)] == ["}"]  # no padding, no stop id
    matcher.push(allowed(mask)[0])
    assert matcher.finished
    assert matcher.mask() is None
    assert matcher.warning is None


def test_what_must_come_is_forced_as_the_tokenizer_would_write_it(vocabulary: Made) -> None:
    made = vocabulary()
    matcher = Matcher(made, schema())
    matcher.begin([])
    text = made.tokenizer.decode(matcher.forced())
    assert text
    assert '{"city": "'.startswith(text)
    assert matcher.forced() == made.tokenizer.encode(text, bos=False)


def test_a_stop_id_comes_only_where_the_grammar_may_end(vocabulary: Made) -> None:
    made = vocabulary()
    matcher = Matcher(made, schema({"type": "integer"}))
    matcher.begin([])
    assert not made.stop_ids & set(allowed(matcher.mask()))
    (one,) = made.tokenizer.encode("1", bos=False)
    matcher.push(one)
    assert {one, *made.stop_ids} <= set(allowed(matcher.mask()))
    assert not matcher.finished
    matcher.push(min(made.stop_ids))
    assert matcher.finished


def test_random_replies_are_valid(vocabulary: Made) -> None:
    made, rng = vocabulary(), np.random.default_rng(1)
    ends = made.tokenizer.encode('"', bos=False)
    for _ in range(20):
        said = drawn(Matcher(made, schema()), rng, ends=ends)
        validate(json.loads(made.tokenizer.decode(said)), CITY)


def test_no_schema_loosens_itself_or_writes_white_space(vocabulary: Made) -> None:
    loose = {**CITY, "x-guidance": {"lenient": True, "whitespace_flexible": True}, "not": {}}
    with pytest.raises(DataError, match='"not"'):
        Matcher(vocabulary(), schema(loose))
    made = vocabulary()
    matcher = follow(made, schema({k: v for k, v in loose.items() if k != "not"}), "{")
    assert next_texts(matcher, made) <= {'"', '"c'}


def test_one_of_is_any_of(vocabulary: Made) -> None:
    follow(vocabulary(), schema({"oneOf": [{"type": "string"}, {"const": "a"}]}), '"a')


def test_a_reply_that_a_schema_says_nothing_of_is_any_json(vocabulary: Made) -> None:
    follow(vocabulary(), Constraint("json_schema", "true"), '{"a": [1, null]}')


# ---------------------------------------------------------------- thoughts


THOUGHT = {"thought": ("<think>", "</think>"), "between": r"(/\n{1,2}/)?"}


@pytest.mark.parametrize(
    "reply",
    ["<think>\nHm < </thin \n</think>\n\n", "<think></think>", "<think>{</think>\n", ""],
)
def test_a_thought_may_stand_in_front(vocabulary: Made, reply: str) -> None:
    made = vocabulary()
    matcher = follow(made, schema(**THOUGHT), f'{reply}{{"city": "", "days": 2}}')
    assert matcher.finished


def test_a_reply_does_not_end_inside_a_thought(vocabulary: Made) -> None:
    made = vocabulary()
    matcher = follow(made, schema(**THOUGHT), "<think>Hm")
    assert set(range(made.tokenizer.vocab_size)) - set(allowed(matcher.mask())) == made.stop_ids
    matcher = follow(made, schema(**THOUGHT), "<think>Hm</think")
    assert not made.stop_ids & set(allowed(matcher.mask()))


def test_a_thought_that_the_prompt_began_is_awaited(vocabulary: Made) -> None:
    made = vocabulary()
    constraint = schema(**THOUGHT, thinking=True)
    assert follow(made, constraint, 'Hm</think>\n{"city": "", "days": 2}').finished
    assert not follow(made, constraint, '{"city": "", "days": 2}').finished


def test_a_thought_whose_markers_are_control_tokens(vocabulary: Made) -> None:
    made = vocabulary("mistral")
    constraint = schema(thought=("[THINK]", "[/THINK]"))
    assert follow(made, constraint, '[THINK]a [b] {[/THINK]{"city": "", "days": 2}').finished
    with pytest.raises(AssertionError):
        follow(made, constraint, '{"city": "[THINK]')


def test_a_marker_shares_its_beginning_with_the_grammar(vocabulary: Made) -> None:
    made = vocabulary()
    constraint = Constraint("lark", 'start: "<thin>" | "<t>"', **THOUGHT)
    assert follow(made, constraint, "<thin>").finished
    assert follow(made, constraint, "<think>a</think><t>").finished


# ---------------------------------------------------------------- triggers


def triggered(**more: object) -> Constraint:
    return Constraint("lark", CALL, triggers=("<tool_call>",), **more)  # type: ignore[arg-type]


def test_all_is_free_up_to_a_trigger_and_behind_what_it_begins(vocabulary: Made) -> None:
    made = vocabulary()
    matcher = follow(made, triggered(), "So <|im_start|> {")
    assert matcher.mask() is None
    matcher = follow(made, triggered(), "So <tool_call>\n{")
    assert next_texts(matcher, made) <= {"a", "b", "c"}
    matcher = follow(made, triggered(), "So <tool_call>{abc}\n</tool_call>")
    assert matcher.mask() is None
    assert not matcher.finished
    matcher = follow(made, triggered(), "<tool_call>{a}\n</tool_call>\nand <tool_call>{")
    assert next_texts(matcher, made) <= {"a", "b", "c"}


def test_the_token_that_ends_a_trigger_brings_nothing_that_is_forbidden(vocabulary: Made) -> None:
    made = vocabulary()
    rests = {}
    for rest in ("he", "x"):
        matcher = follow(made, Constraint("lark", f'start: "{rest}"', triggers=("-t",)), "a-")
        tokens = allowed(matcher.mask())
        assert made.stop_ids <= set(tokens)
        rests[rest] = {made.tokenizer.token_bytes(token) for token in tokens}
    assert rests["he"] - rests["x"] == {b"th", b"the"}
    assert {b"t", b"a", b"<|im_start|>"} <= rests["x"]
    (the,) = made.tokenizer.encode("the", bos=False)
    matcher = follow(made, Constraint("lark", 'start: "her"', triggers=("-t",)), "a-")
    matcher.push(the)
    assert next_texts(matcher, made) == {"r"}


def test_a_trigger_that_is_a_control_token(vocabulary: Made) -> None:
    made = vocabulary("lfm")
    constraint = Constraint(
        "lark",
        f'start: "[" /[a-c]/ "]" <[{made.tokenizer.controls["<|tool_call_end|>"]}]>',
        triggers=("<|tool_call_start|>",),
    )
    matcher = follow(made, constraint, "A<|tool_call_start|>[")
    assert next_texts(matcher, made) == {"a", "b", "c"}
    assert follow(made, constraint, "A<|tool_call_start|>[a]<|tool_call_end|>").mask() is None


def test_a_trigger_of_control_tokens_and_text(vocabulary: Made) -> None:
    made = vocabulary("harmony")
    constraint = Constraint("lark", 'start: /[a-c]+/ "."', triggers=("<|channel|>to=f.",))
    assert follow(made, constraint, "to=f.xyz").mask() is None
    assert next_texts(follow(made, constraint, "<|channel|>to=f."), made) == {"a", "b", "c"}
    assert follow(made, constraint, "<|channel|>to=g").mask() is None


def test_a_trigger_may_begin_in_the_prompt(vocabulary: Made) -> None:
    made = vocabulary()
    assert next_texts(follow(made, triggered(), "call>", prompt="?<tool_"), made) == {"{", "\\n"}


def test_a_trigger_in_a_thought_is_none(vocabulary: Made) -> None:
    made = vocabulary()
    constraint = triggered(**THOUGHT)
    assert follow(made, constraint, "<think>a<tool_call>b").mask() is None
    assert follow(made, constraint, "<think>a<tool_call>b</think><tool_call>{").mask() is not None
    assert follow(made, constraint, "No <think>a<tool_call>{").mask() is not None  # it is talked of
    assert follow(made, triggered(**THOUGHT, thinking=True), "a<tool_call>b").mask() is None


def test_once_is_one_part(vocabulary: Made) -> None:
    assert follow(vocabulary(), triggered(once=True), "So <tool_call>{a}\n</tool_call>").finished


# ---------------------------------------------------------------- what cannot be


BAD = {
    '{"not": {}}': '"not" is not supported',
    '{"type": "array", "uniqueItems": true}': '"uniqueItems" is not supported',
    '{"type": "string", "pattern": "(?=a)b"}': "look-around",
    '{"type": "string", "format": "colour"}': "colour",
    '{"$ref": "http://example.com/"}': "not present in a registry",
    '{"allOf": [{"type": "string"}, {"type": "integer"}]}': "incompatible types",
    '{"enum": ["\\ud800"]}': "cannot be enforced",
    "[": "not valid JSON",
    "1": "must be an object",
    '{"items":' * 2000 + "1": "nested too deeply",
    '{"items":' * 500 + "{}" + "}" * 500: "recursion limit",
    '{"type": "string", "pattern": "' + "(" * 9999 + ")" * 9999 + '"}': "cannot be enforced",
    " " * MAX_GRAMMAR + "{}": "characters",
}


@pytest.mark.parametrize("grammar", BAD, ids=lambda text: text[:30])
def test_what_cannot_be_enforced_is_one_line(vocabulary: Made, grammar: str) -> None:
    with pytest.raises(DataError) as caught:
        Matcher(vocabulary(), Constraint("json_schema", grammar))
    assert BAD[grammar] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    matcher = follow(vocabulary(), Constraint("json_schema", grammar, triggers=("<t>",), warning="before"), "<t>x")
    assert matcher.mask() is None
    assert matcher.warning is not None
    assert matcher.warning.startswith("before; ")
    assert BAD[grammar] in matcher.warning


@pytest.mark.parametrize("grammar", ['{"$ref": "#"}', '{"anyOf": [{"$ref": "#"}]}'])
def test_a_schema_that_nothing_satisfies_is_one_line(vocabulary: Made, grammar: str) -> None:
    with pytest.raises(DataError, match="nothing that the model can write satisfies it"):
        follow(vocabulary(), Constraint("json_schema", grammar), "").mask()


def test_an_expression_that_is_too_large_ends_the_reply_that_wants_it(vocabulary: Made) -> None:
    constraint = schema({"type": "string", "pattern": "^(a{1000}){1000}$"})
    begun = time.process_time()
    with pytest.raises(DataError, match="too many expressions"):
        follow(vocabulary(), constraint, '"aa')
    assert time.process_time() - begun < 20  # and not for ever; it takes a fraction of a second


def test_a_token_that_was_not_allowed_ends_the_reply(vocabulary: Made) -> None:
    made = vocabulary()
    matcher = Matcher(made, schema())
    matcher.begin([])
    with pytest.raises(DataError):
        matcher.push(made.tokenizer.encode("x", bos=False)[0])
    matcher = follow(made, triggered(), "<tool_call>")
    matcher.push(made.tokenizer.encode("x", bos=False)[0])
    assert matcher.warning
    assert matcher.mask() is None


def test_what_the_first_matcher_would_wait_for_is_made_beforehand(vocabulary: Made) -> None:
    grammars = Grammars(vocabulary().tokenizer, 400)
    grammars.prepare().join()
    matcher = grammars.matcher(schema())
    matcher.begin([])
    mask = matcher.mask()
    assert mask is not None
    assert mask.shape == (13,)
