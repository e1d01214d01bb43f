"""A long conversation in pieces is the conversation rendered for every turn, or it is not taken in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.data import encode as data_encode
from partita.data.encode import marked_turns, turns
from partita.data.records import parse
from partita.errors import DataError, PartitaError
from partita.text.chat_template import ChatTemplate, MarkedChat
from partita.text.load import tokenizer_from_folder
from partita.text.template_growth import Growth, growth
from partita.text.tokenizer import Tokenizer

from ...conftest import write_tokenizer

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}{{ c.name }}{% endfor %}<|im_end|>\n"
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
APPENDS = {
    "chatml": LOOP % TURN + ASK,
    "a default prompt": "{% if messages[0].role != 'system' %}be brief{% endif %}" + LOOP % TURN + ASK,
    "names the tool": "{% set n = namespace(t='') %}"
    + LOOP % ("{% for c in m.tool_calls %}{% set n.t = c.name %}{% endfor %}{{ n.t if m.role == 'tool' }}" + TURN)
    + ASK,
    "groups tools": LOOP % ("{% if m.role == 'tool' and loop.previtem.role != 'tool' %}<tools>{% endif %}" + TURN)
    + ASK,
    "opens with more": LOOP % TURN + ASK.replace("assistant\n", "assistant\n<think>"),
}
CHANGES = {
    "numbers": LOOP % ("{{ loop.index }}" + TURN) + ASK,
    "counts down": LOOP % ("{{ loop.revindex }}" + TURN) + ASK,
    "counts": "{{ messages | length }}" + LOOP % TURN + ASK,
    "marks the last": LOOP % TURN.replace("<|im_end|>", "{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}") + ASK,
    "forgets thoughts": LOOP % TURN.replace("m.content", "(m.content if loop.last else m.content.split('.')[-1])")
    + ASK,
    "tires": LOOP % ("{% if loop.index < 40 %}" + TURN + "{% endif %}") + ASK,
    "asks otherwise later": LOOP % TURN + ASK.replace("assistant\n", "{{ 'x' if messages | length > 45 }}assistant\n"),
    "refuses parts": "{% if messages[0].content != 'first' %}{{ raise_exception('no') }}{% endif %}"
    + LOOP % TURN
    + ASK,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_tokenizer(folder)
    return tokenizer_from_folder(folder)


def talk(roles: list[str], text: str = "be. so") -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": role, "content": f"{i}{text}"} for i, role in enumerate(roles)]
    for i, message in enumerate(messages[:-1]):
        if messages[i + 1]["role"] == "tool" and message["role"] == "assistant":
            message["tool_calls"] = [{"name": f"f{i}"}]
    messages[0]["content"] = "first"
    return {"messages": messages}


def outcome(chat: MarkedChat, record: Any, long: int) -> Any:
    """What is trained, or the refusal, if conversations from `long` messages on may be taken in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_encode, "_LONG", long)
        try:
            return turns(chat, record)
        except PartitaError as error:
            return str(error)


def compared(tokenizer: Tokenizer, source: str, value: dict[str, Any]) -> Growth | None:
    """How it grows, after both ways agree."""
    record = parse(value)
    chat = MarkedChat(tokenizer, ChatTemplate(source), record.messages)
    assert outcome(chat, record, 0) == outcome(chat, record, 1 << 30)
    return growth(chat)


TALKS = [
    ["user", "assistant"] * 30,
    ["system"] + ["user", "assistant"] * 30 + ["user"],
    ["user"] + ["assistant", "tool"] * 30 + ["assistant"],
    ["system", "user", *["assistant", "tool", "tool"] * 12, "assistant", "user", "assistant"] * 2,
]


@pytest.mark.parametrize("roles", TALKS)
@pytest.mark.parametrize("name", APPENDS)
def test_a_template_that_appends_is_seen_to(tokenizer, name, roles):
    assert compared(tokenizer, APPENDS[name], talk(roles)) is not None


@pytest.mark.parametrize("name", CHANGES)
def test_a_template_that_changes_what_it_wrote_is_rendered_for_every_turn(tokenizer, name):
    assert compared(tokenizer, CHANGES[name], talk(TALKS[0])) is None


@given(
    roles=st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), min_size=2, max_size=40),
    source=st.sampled_from([*APPENDS.values(), *CHANGES.values()]),
    first=st.integers(0, 2),
)
@settings(max_examples=60)
def test_whatever_the_conversation_both_ways_agree(tokenizer, roles, source, first):
    messages = talk([*roles, "assistant"])["messages"]
    prompt, completion = messages[:first], messages[first:]
    compared(tokenizer, source, {"prompt": prompt, "completion": completion} if prompt else {"messages": completion})


def test_the_work_grows_with_the_messages(monkeypatch, tokenizer):
    work = 0
    render = ChatTemplate.renderings

    def counted(self, messages, which, variables):
        nonlocal work
        work += sum((len(messages) if end is None else end) - begin for spans, _ in which for begin, end in spans)
        return render(self, messages, which, variables)

    monkeypatch.setattr(ChatTemplate, "renderings", counted)
    count = 3000
    record = parse(talk(["user", "assistant"] * (count // 2)))
    [draft] = turns(MarkedChat(tokenizer, ChatTemplate(APPENDS["chatml"]), record.messages), record)
    assert len(draft.spans) == count // 2
    assert work < 20 * count


def test_what_would_take_too_long_is_one_line(tokenizer):
    record = parse(talk(["user", "assistant"] * 501))
    chat = MarkedChat(tokenizer, ChatTemplate(CHANGES["counts"]), record.messages)
    assert marked_turns(chat, record) == []
    with pytest.raises(DataError, match=r"1002 messages, .* split"):
        turns(chat, record)
