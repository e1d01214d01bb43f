"""What templates are made of means what it means in transformers: the same text and ids, or two refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from partita.errors import TemplateError
from partita.text.chat_template import ChatTemplate, encode_chat
from partita.text.load import tokenizer_from_folder

from ...conftest import SPECIALS, write_tokenizer

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weigh", "arguments": {"fox": "red", "most": 3, "q": "'<é>'"}},
}
WRITTEN = {**CALL, "function": {"name": "weigh", "arguments": '{"fox": "red"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weigh",
            "description": "Weighs a <fox> & more.",
            "parameters": {
                "type": "object",
                "properties": {
                    "fox": {"type": "string", "enum": ["red", "white"], "description": "which"},
                    "most": {"type": ["integer", "null"], "default": None},
                    "dogs": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["fox"],
            },
        },
    }
]
ASK, SAY = {"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "the lazy dog"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [ASK],
    "system": [
        {"role": "system", "content": "  be brief \n"},
        ASK,
        SAY,
        {"role": "user", "content": "\n 日本 é 🦊 \n\n"},
    ],
    "developer": [{"role": "developer", "content": "be brief"}, ASK],
    "ends with a reply": [ASK, SAY],
    "an answer first": [SAY, ASK],
    "twice the same role": [ASK, ASK, SAY],
    "call": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "3 kg"}],
    "call without content": [
        ASK,
        {"role": "assistant", "tool_calls": [CALL, WRITTEN]},
        {"role": "tool", "content": "3"},
    ],
    "call as text": [ASK, {"role": "assistant", "content": "", "tool_calls": [WRITTEN]}, SAY, ASK],
    "thinking": [ASK, {**SAY, "thinking": "dogs\nare lazy"}, ASK],
    "reasoning": [ASK, {**SAY, "reasoning": "dogs are lazy", "tool_calls": None}],
    "reasoning_content": [ASK, {**SAY, "reasoning_content": "dogs are lazy", "thinking": None}, ASK],
    "thought in text": [ASK, {"role": "assistant", "content": "<think>\nare dogs lazy?\n</think>\n\nyes"}, ASK],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "fox"}], "name": "x"}
    ],
}
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
EACH = [  # inside a loop over messages
    "{{ m.role }}: {{ m.content }}\n",
    "{{ m['role'] + ': ' + (m['content'] or '') }}",
    "{{- '<|im_start|>' + m.role + '\n' }}{%- if m.content is string %}{{- m.content }}{%- endif %}{{- '.\n' -}}",
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>' ~ loop.index }}",
    "{{ m.content | trim }}|{{ m.content | default('-', true) }}|{{ m.content | length if m.content }}",
    "{% if m.content is none %}none{% elif m.content is defined %}defined{% else %}missing{% endif %}",
    "{{ m.content is string }}{{ m.content is mapping }}{{ m.content is sequence }}{{ m.content is iterable }}",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.content is string and '</think>' in m.content else 'no' }}",
    "{% set p = (m.content or '').split('</think>') %}{{ p[0].split('<think>')[-1].strip('\n') }}/{{ p | last }}",
    "{{ m.thinking }}/{{ m.reasoning_content }}/{{ m.reasoning }}",
    "{% if m.reasoning_content is string %}<think>{{ m.reasoning_content.strip() }}</think>{% endif %}{{ m.content }}",
    "{% if 'thinking' in m and loop.last %}[{{ m.thinking | replace('\n', ' ') }}]{% endif %}{{ m.content | upper }}",
    "{{ m.get('thinking', 'none') }}{{ m.get('content') }}{{ m.keys() | list | sort | join(',') }}",
    "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}",
    "{{ m | tojson }}",
    "{{ m | tojson(indent=2) }}",
    "{{ m | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}",
    "{% for c in m.tool_calls or [] %}{% set c = c.function if c.function else c %}{{ c.arguments }}{% endfor %}",
    "{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}"
    "{{ a if a is string else a | tojson }}{{ ', ' if not loop.last }}{% endfor %}{% endif %}",
    "{% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}|{% endfor %}{% endfor %}",
    "{% for c in m['tool_calls'] %}{{ c['function']['arguments'].items() | list | length }}{% endfor %}",
    "{% if loop.first %}<{% endif %}{{ loop.revindex }} {{ loop.length }}{% if loop.last %}>{% endif %}",
    "{% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %}>{{ loop.nextitem.role if loop.nextitem }}",
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.depth }}",
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 2 %}{% break %}{% endif %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{%- if m.role == 'assistant' -%}\n {%- generation -%} x {{- m.content -}} y {%- endgeneration -%}\n{%- endif -%}",
    "{% set x = m.role %}{% generation %}{% set x = 'inside' %}{{ x }}{{ m.role }}{% endgeneration %}{{ x }}",
    "{{ {'user': 'U', 'assistant': 'A'}[m.role] }}",
    "{{ {'user': 'U', 'assistant': 'A'}.get(m.role, m.role[:3]) }}{{ m.role[0] }}{{ m.role[::-1] }}",
    "{{ '%s (%d)' % (m.role, loop.index) }}{{ '{}-{:>3}'.format(m.role, loop.index) }}{{ m.role.center(12) }}",
    "{{ m.role in ['user', 'tool'] }}{{ m.role not in ('user',) }}{{ 'er' in m.role }}{{ m.role.startswith('u') }}",
    "{{ m.content | string | e }}{{ m.content | string | escape | length }}",
    "{{ '<q>' ~ (m.role | tojson | safe) ~ '</q>' }}{{ '<q>' + (m.role | safe) + '</q>' }}",
    "{{ ('<' | escape) ~ '<' ~ m.role }}{{ '<' ~ ('&' | safe) }}{{ ['<', '<' | escape] | join }}",
    "{{ m.content | indent(4) if m.content is string }}{{ m.content | wordcount if m.content is string }}",
    "{% if (loop.index0 % 2 == 0) != (m.role == 'user') %}{{ raise_exception('roles must alternate') }}{% endif %}",
    "{{ m.name }}{{ m.missing }}{{ m.missing | default('d') }}{{ m.missing is defined }}{{ m.content is undefined }}",
    "{{ m.missing.deeper }}",
    "{% if m.content is not string %}{{ m.content | map(attribute='text') | join(' ') }}{% endif %}",
    "{{ m.content[0]['text'] if m.content is not string else m.content }}",
    "{{ m | dictsort | first }}{{ m | length }}{{ m | list }}",
    "\n    {% if true %}\n  {{ m.role }}\n    {% endif %}\n  {# a note #}\n",
]
WHOLE = [
    "{{ bos_token }}{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ fox_token }}|{{ dog_token }}|{{ sep_token }}",
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}{{ cls_token is defined }}{{ pad_token is defined }}",
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{{ first }}{% for m in rest %}{{ m.role }}{% endfor %}",
    "{% set ns = namespace(last=-1, open=true) %}{% for m in messages[::-1] %}"
    "{% set i = (messages|length - 1) - loop.index0 %}{% if ns.open and m.role == 'user' %}{% set ns.last = i %}"
    "{% set ns.open = false %}{% endif %}{% endfor %}{{ ns.last }}",
    "{% macro show(m, sep=': ') %}{{ m.role }}{{ sep }}{{ m.content }}{{ caller() if caller }}{% endmacro %}"
    "{{ show(messages[0]) }}{% call show(messages[-1], sep='=') %}!{% endcall %}",
    "{% macro down(n) %}{{ n }}{% if n > 0 %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(messages|length) }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages|rejectattr('content') | list }}",
    "{{ messages | map(attribute='role') | unique | join(',') }}{{ messages | map('length') | sum }}",
    "{% for role, group in messages | groupby('role') %}{{ role }}{{ group | length }}{% endfor %}",
    "{% set x %}a{{ messages[0].role }}b{% endset %}{{ x | upper }}{{ x ~ x }}",
    "{% filter upper %}{{ messages[0].role }}{% endfilter %}{% with y = 3 %}{{ y }}{% endwith %}{{ y }}",
    "{% if tools %}{{ tools | tojson(indent=4) }}{% elif tools is none %}no tools{% endif %}",
    "{% if tools is defined and tools is not none %}{% for t in tools %}{% set f = t.function.parameters %}"
    "{{ t.function | tojson }}{{ f.properties.most.default }}{% for n, p in f.properties.items() %}"
    "{{ n }}{{ '?' if n not in f.required }}:{{ p.type if p.type is string else p.type | join(' | ') }}"
    "{{ p['items'].type }}{% endfor %}{% endfor %}{% endif %}",
    "{% for t in tools %}{{ t.function.parameters.properties.fox.enum | join('\" | \"') }}{% endfor %}",
    "{{ documents }}{{ documents is none }}{% if documents %}{{ documents | length }}{% endif %}",
    "{{ enable_thinking }}{% if enable_thinking is defined and enable_thinking is false %}<think>\n{% endif %}",
    "{{ reasoning_effort | default('medium') | upper }}{{ other | default('medium') }}{{ other is defined }}",
    "{{ strftime_now('%Y-%m-%d') }}{{ strftime_now('%d %b %Y') }}{% if strftime_now is defined %}!{% endif %}",
    "{{ messages[-1]['role'] }}{{ messages[messages | length - 1].role }}{{ (messages | last).role }}",
    "{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}",
    "{{ range(3) | list }}{{ range(10, 0, -3) | join }}{{ dict(a=1, b=2) | tojson }}{{ lipsum is defined }}",
    "{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 3 ** 2 }}{{ -7 % 3 }}{{ 1 < 2 < 3 }}{{ 3.0 }}{{ 1e3 | int }}{{ '7' | int + 1 }}",
    "{{ none }}{{ true }}{{ None }}{{ True }}{{ [none, true, 1.5, 'a\\'b'] }}{{ {'a': [1, none]} }}",
    "{{ [3, 1, 2] | sort | join }}{{ [1, 2, 3] | batch(2) | list }}{{ ['b', 'A'] | sort }}",
    "{{ messages | tojson | length }}{{ messages[0] | pprint }}{{ 'é' | urlencode }}{{ '<b>a</b>' | striptags }}",
    "{{ messages[9] }}{{ messages[9] is defined }}",
    "{{ messages[9].role }}",
    "{{ messages.append(messages[0]) }}",
    "{{ raise_exception('no ' ~ messages | length) }}",
    "{{ ''.__class__ }}",
    "{% include 'other' %}",
]
CONSTRUCTS = [*WHOLE, *(LOOP % each for each in EACH)]
GIVEN = {"enable_thinking": False, "reasoning_effort": "low"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {
        "unk_token": SPECIALS[0],
        "pad_token": {"content": SPECIALS[0], "__type": "AddedToken"},
        "cls_token": None,
    }
    config |= {"fox_token": SPECIALS[1], "extra_special_tokens": {"dog_token": SPECIALS[2]}, "add_eos_token": False}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def judge(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizer_from_folder(folder)


def theirs(judge, source: str, messages: list[dict[str, Any]], given: dict[str, Any]) -> tuple[str, list[int]] | None:
    """Text and ids, None where the template refuses."""
    how = {"chat_template": source, "return_dict": False, **given}
    try:
        return tuple(judge.apply_chat_template(messages, tokenize=tokenize, **how) for tokenize in (False, True))
    except Exception:  # a template may raise whatever it likes
        return None


@pytest.mark.parametrize("source", CONSTRUCTS)
def test_a_construct_means_what_it_means_in_transformers(judge, tokenizer, source):
    template = ChatTemplate(source, tokens=tokenizer.special_tokens)
    for i, messages in enumerate(CONVERSATIONS.values()):
        given = {**GIVEN, "tools": TOOLS if i % 3 else None, "add_generation_prompt": i % 2 == 0}
        expected = theirs(judge, source, messages, given)
        if expected is None:
            with pytest.raises(TemplateError):
                template.render(messages, **given)
        else:
            assert (template.render(messages, **given), encode_chat(tokenizer, template, messages, **given)) == expected


def test_the_comparison_is_of_texts_more_than_of_refusals(judge):
    found = [theirs(judge, source, messages, GIVEN) for source in CONSTRUCTS for messages in CONVERSATIONS.values()]
    assert len(CONSTRUCTS) >= 70
    assert len(CONVERSATIONS) >= 12
    assert sum(each is not None for each in found) > len(found) * 3 / 4
