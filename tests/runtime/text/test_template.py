"""Chat templates: the dialect, the sandbox, the limits; and conversations as ids, where user text stays text."""

import json
import time
from dataclasses import dataclass
from enum import StrEnum

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from partita.errors import TemplateError
from partita.text.chat_template import MAX_SOURCE, ChatTemplate, MarkedChat, encode_chat
from partita.text.load import tokenizer_from_folder
from partita.text.tokenizer import Tokenizer
from partita.text.vocabulary import Facts

CHATML = (
    "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}"
)
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
HELLO = [{"role": "user", "content": "hello"}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What's 2+2?\n\n é 🤽 "},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "世界"},
]

# what the templates of Qwen, SmolLM3, gpt-oss, Granite, Llama, Gemma and Phi are made of, in one of our own
DIALECT = r"""
{%- macro kind(p) -%}
  {%- if p.type == "array" -%}{{ p['items']['type'] + "[]" }}
  {%- elif p.type is iterable and p.type is not string -%}
    {%- for one in p.type -%}{{ one }}{{ " | " if not loop.last }}{%- endfor -%}
  {%- else -%}{{ p.type }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(open=true, last=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
  {%- set index = (messages|length - 1) - loop.index0 -%}
  {%- if ns.open and message.role == "user" and message.content is string
     and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) -%}
    {%- set ns.open = false -%}{%- set ns.last = index -%}
  {%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.last }} {{ strftime_now("%Y") | length }}
{%- if tools is not none %}
{% for tool in tools -%}
  {%- set f = tool.function -%}
  {{ f.name }}({%- for name, p in f.parameters.properties.items() -%}
  {{ name + "?: " if name not in f.parameters.required else name + ": " }}{{ kind(p) }}, {% endfor -%})
{{ tool | tojson(indent=4) }}
{% endfor -%}
{%- endif %}
{%- for message in messages -%}
  {%- if loop.previtem is defined and loop.previtem.role == message.role -%}
    {{ raise_exception("roles must alternate") }}
  {%- endif -%}
  {%- set content, thought = message.content, '' -%}
  {%- if '</think>' in content -%}
    {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
    {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
  {%- endif -%}
  [{{ message['role'] | upper }}] {% generation %}{{ content | trim }}{% endgeneration -%}
  {{ ' ' + thought | default('-', true) }}
  {%- if message.tool_calls is defined and message.tool_calls -%}
    {{ message.tool_calls | map(attribute='name') | join(',') }}
  {%- endif %}
{% endfor -%}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ reasoning_effort | default('medium') }}
{%- if add_generation_prompt %}<reply>{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}
{%- endif %}"""
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {
                "words": {"type": "array", "items": {"type": "string"}},
                "most": {"type": ["integer", "null"]},
            },
            "required": ["words"],
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": CONTROLS, "initial_alphabet": alphabet, "show_progress": False}
    library.train_from_iterator([CHATML, "user assistant system hello"], trainers.BpeTrainer(vocab_size=360, **options))
    library.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True, "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizer_from_folder(folder)


@pytest.fixture(scope="module")
def template(tokenizer):
    return ChatTemplate.of(tokenizer)


def rendered(source, messages=HELLO, **variables):
    return ChatTemplate(source, tokens={"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **variables)


def test_blocks_leave_no_whitespace_of_their_own():
    assert (
        rendered("{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n.")
        == "hello\n."
    )


def test_the_helpers_that_templates_expect():
    assert rendered("{{ bos_token }}{{ eos_token }}") == "<s></s>"
    assert rendered("{{ {'b': '<é>', 'a': 1}|tojson }}") == '{"b": "<é>", "a": 1}'
    assert rendered("{{ [1]|tojson(indent=2) }}") == "[\n  1\n]"
    assert rendered("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert rendered("{% generation %}x{% endgeneration %}") == "x"
    assert rendered("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert rendered("{{ 'a' ~ 1 ~ none ~ [2] }}{{ tools is none }}{{ add_generation_prompt }}") == "a1None[2]TrueTrue"
    assert rendered("{{ thinking }}{{ missing }}", thinking=False) == "False"
    assert rendered("{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x * 3 % 4 }}{{ 2 ** 8 }}") == "2256"
    assert rendered("{{ '%s-%02d' % ('a', 3) }}{{ '-' * 3 }}{{ [1] + [2] }}") == "a-03---[1, 2]"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "line 1"),
        ("a\n{{ raise_exception('only\n users') }}", "only users"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update({'role': 'x'}) }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'a' * 10**12 }}", "memory"),
        ("{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "memory"),
        ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "writes more"),
        ("{% for i in range(1000000) %}{% endfor %}", "(?i)range"),
        ("{{ messages|tojson(nonsense=1) }}", "nonsense"),
        ("x" * (MAX_SOURCE + 1), "characters"),
    ],
)
def test_what_a_template_may_not_do_is_one_error_in_one_line(source, message):
    with pytest.raises(TemplateError, match=message) as caught:
        rendered(source)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("chat template: ")


def test_conversations_with_tools_may_have_a_template_of_their_own(tokenizer):
    template = ChatTemplate("plain", "{{ tools | length }}{{ bos_token }}", tokens={"bos_token": "<s>"})
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, tools=[]) == "0<s>"
    assert tokenizer.decode(encode_chat(tokenizer, template, HELLO, tools=[TOOL]), specials=True) == "<s>1<s>"
    assert template.dated(2024, 2, 3).render(HELLO, tools=[TOOL]) == "1<s>"
    assert template.mentions("tools")
    assert not template.mentions("documents")


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        (CHATML, ["id", "name", "thinking"]),
        ("{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}{% endfor %}", ["id", "name", "role"]),
        (
            "{% for m in messages %}{{ m['content'] }}{{ m.get('name') }}{{ thinking_mode }}{% endfor %}",
            ["id", "role", "thinking"],
        ),
        ("{{ messages | tojson }}", []),
        ("{% for m in messages %}{{ m.values() | list }}{% endfor %}", []),
    ],
)
def test_what_of_a_message_comes_to_nothing(tokenizer, source, keys):
    messages = [{"role": "user", "content": "hello", "name": "x", "tool_calls": None}, {"role": "assistant", "id": 3}]
    messages[1] |= {"content": "<|im_end|>", "thinking": "why"}
    assert MarkedChat(tokenizer, ChatTemplate(source), messages).unread() == keys


def test_values_of_any_kind_are_given_as_plain_ones(tokenizer):
    """A template finds nothing to call in them, and a literal in them is as much text as anywhere else."""

    class Role(StrEnum):
        USER = "user"

    @dataclass
    class Part:
        text: str

    messages = [{"role": Role.USER, "content": [Part("<|im_end|>"), ("a", 1.5, None)], "image": object()}]
    template = ChatTemplate("{{ messages[0].role }} {{ messages[0].content }} {{ messages[0].image }}")
    assert template.render(messages) == "user [{'text': '<|im_end|>'}, ['a', 1.5, None]] <object>"
    ids = encode_chat(tokenizer, template, messages)
    assert not set(ids[1:]) & set(tokenizer.controls.values())


def test_what_cannot_be_given_is_one_line(tokenizer):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for content in (deep, 10**5000, {(1, 2): 3}):
        with pytest.raises(TemplateError, match=r"^chat"):
            encode_chat(tokenizer, ChatTemplate("{{ messages[0].content }}"), [{"role": "user", "content": content}])
    with pytest.raises(TemplateError, match="a message is a str"):
        ChatTemplate("{{ messages }}").render(["hello"])


def test_messages_are_left_as_they_were(template):
    messages = [dict(message) for message in CONVERSATION]
    template.render(messages)
    assert messages == CONVERSATION


def test_a_base_model_is_sent_to_raw(tokenizer):
    with pytest.raises(TemplateError, match="`raw`"):
        encode_chat(tokenizer, None, HELLO)
    base = Tokenizer(tokenizer.engine, Facts())
    with pytest.raises(TemplateError, match="`raw`"):
        ChatTemplate.of(base)


def test_ids_are_those_of_transformers(folder, tokenizer, template):
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(folder)
    expected = judge.apply_chat_template(CONVERSATION, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode_chat(tokenizer, template, CONVERSATION) == [tokenizer.bos_id, *expected]
    expected = judge.apply_chat_template(CONVERSATION, tokenize=True, add_generation_prompt=False, return_dict=False)
    assert encode_chat(tokenizer, template, CONVERSATION, add_generation_prompt=False)[1:] == expected


@pytest.mark.parametrize("source", [CHATML, "{{ bos_token }}" + CHATML, "{{ bos_token }}{{ bos_token }}" + CHATML])
def test_exactly_one_bos_whoever_writes_it(tokenizer, source):
    ids = encode_chat(tokenizer, ChatTemplate(source, tokens={"bos_token": "<s>"}), HELLO)
    assert ids[0] == tokenizer.bos_id
    assert ids.count(tokenizer.bos_id) == 1


contents = st.lists(st.sampled_from([*CONTROLS, "<|im_", "end|>", "<", "|>", "a b", " ", "é", "\U000f0000"])).map(
    "".join
)


@given(content=contents)
@settings(max_examples=60)
def test_a_users_literal_is_text_and_nothing_is_lost(tokenizer, template, content):
    messages = [{"role": "user", "content": content}]
    ids = encode_chat(tokenizer, template, messages)
    ends, starts = tokenizer.controls["<|im_end|>"], tokenizer.controls["<|im_start|>"]
    assert (ids.count(starts), ids.count(ends), ids.count(tokenizer.controls["<|endoftext|>"])) == (2, 1, 0)
    assert tokenizer.decode(ids[1:], specials=True) == template.render(messages)


def test_literals_in_tools_and_in_lists_of_parts_are_text(tokenizer):
    source = "{{ tools|tojson }}{% for m in messages %}{{ m.content[0].text }}{{ m.content[0]|tojson }}{% endfor %}"
    template = ChatTemplate(source)
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}]}]
    tools = [{"name": "<|im_start|>", "<s>": 1}]
    ids = encode_chat(tokenizer, template, messages, tools=tools)
    assert not set(ids[1:]) & set(tokenizer.controls.values())
    assert tokenizer.decode(ids) == template.render(messages, tools=tools)


def test_a_literal_split_between_two_messages_is_still_text(tokenizer):
    template = ChatTemplate("{% for m in messages %}{{ m.content|trim }}\n{% endfor %}")
    ids = encode_chat(tokenizer, template, [{"role": "user", "content": "<|im_<|im_end|>end|>"}])
    assert not set(ids[1:]) & set(tokenizer.controls.values())


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("prompt", [True, False])
def test_what_published_templates_use_renders_as_in_transformers(tools, prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        *CONVERSATION[:2],
        {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4", "tool_calls": [{"name": "look_up"}]},
        CONVERSATION[3],
    ]
    given = {"tools": tools, "add_generation_prompt": prompt, "enable_thinking": False}
    ours = ChatTemplate(DIALECT, tokens={"bos_token": "<s>"}).render(messages, **given)
    theirs, _ = render_jinja_template([messages], chat_template=DIALECT, bos_token="<s>", **given)
    assert ours == theirs[0]
    assert "[ASSISTANT] 4 two and twolook_up" in ours
