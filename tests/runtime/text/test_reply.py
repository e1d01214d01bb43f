"""Replies told apart: every form, however it is split; what is broken stays visible; nothing typed is believed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.chat_forms import FORMS, write_tokenizer

from partita.text.chat_template import ChatTemplate, chat_parts
from partita.text.load import tokenizer_from_folder
from partita.text.reply.calls import NOTATIONS, read
from partita.text.reply.formats import BLOCKS, DIALECTS, NOISE
from partita.text.reply.parser import Part, ReplyFormat, ReplyParser
from partita.text.reply.values import Malformed
from partita.text.tokenizer import Tokenizer

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in {
        "weather": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "write": {"path": {"type": "string"}, "text": {"type": "string"}, "mode": {"type": ["integer", "null"]}},
    }.items()
]
CITY = ("weather", {"city": "Oslo"})
DAYS = ("weather", {"city": "Oslo", "days": 2})
INVOKED = """<atem:function_calls>
<atem:invoke name="weather">
<atem:parameter name="city">Oslo</atem:parameter>
<atem:parameter name="days">2</atem:parameter>
</atem:invoke>
</atem:function_calls>"""
Forms = dict[str, tuple[Tokenizer, ReplyFormat]]


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """Vocabulary and format of every form."""
    found = {}
    for name in FORMS:
        folder = tmp_path_factory.mktemp("forms") / name
        folder.mkdir()
        write_tokenizer(folder, name)
        tokenizer = tokenizer_from_folder(folder)
        found[name] = tokenizer, ReplyFormat.of(tokenizer, ChatTemplate.of(tokenizer))
    return found


def prompt_of(tokenizer: Tokenizer, text: str, **variables: object) -> list[int]:
    messages = [{"role": "user", "content": text}]
    rendered = ChatTemplate.of(tokenizer).render(messages, **variables)
    return tokenizer.encode(rendered, bos=False, specials=True)


def separated(parts: Iterable[Part]) -> tuple[str, str, list[tuple]]:
    """Speech, thoughts and calls of a reply; of a call that is not understood, as it was written."""
    parts = list(parts)
    speech, thought = ("".join(part.text for part in parts if part.kind == kind) for kind in ("speech", "thought"))
    calls = [part.call for part in parts if part.call is not None]
    return speech, thought, [(c.name, json.loads(c.arguments)) if c.error is None else (c.written,) for c in calls]


def by_token(parser: ReplyParser, ids: list[int]) -> list[Part]:
    return [*(part for token in ids for part in parser.push(token)), *parser.finish()]


def read_as(forms: Forms, name: str, text: str, *, asked: str = "?", tools: object = TOOLS, **variables: object):
    """A reply in which control tokens' literals are control tokens, token by token."""
    tokenizer, form = forms[name]
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, asked, **variables), tools=tools)
    return separated(by_token(parser, tokenizer.encode(text, bos=False, specials=True)))


# ---------------------------------------------------------------- every form


REPLIES = [
    ("none", "<think>a</think> <tool_call>{}</tool_call>", "<think>a</think> <tool_call>{}</tool_call>", "", []),
    ("none", "\n\nHi\n", "\n\nHi\n", "", []),
    ("thinking", "<think>\nHm.\n</think>\n\nParis.", "Paris.", "Hm.", []),
    ("thinking", "<think>\n\n</think>\n\nParis.\n", "Paris.\n", "", []),
    ("thinking", " \n<think>Hm.</think> <think>So.</think>b", "b", "Hm.\nSo.", []),
    ("thinking", "The tag <think> and\n<think>", "The tag <think> and\n<think>", "", []),
    ("thinking", "<think>Hm.</think>The tag\n\n<think>", "The tag\n\n<think>", "Hm.", []),
    ("gemma4", "So.<|channel>thought\nHm.<channel|>", "So.", "Hm.", []),
    ("thinking", "<think>\nHm, and", "", "Hm, and", []),
    ("thinking", "Paris.</think>", "Paris.</think>", "", []),
    ("thinking", "I call.\n<tool_call>\n" + json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}) +
     "\n</tool_call>", "I call.", "", [CITY]),
    ("thinking", '<tool_call>{"name":"weather","arguments":"{\\"city\\":\\"Oslo\\"}"}</tool_call>\n<tool_call>\n'
     '{"arguments": {"city": "Oslo", "days": 2}, "name": "weather"}\n</tool_call> So.', " So.", "", [CITY, DAYS]),
    ("thinking", '<tool_call>{"name": "write", "arguments": {"text": "</tool_call> <think>\\" {"}}</tool_call>!',
     "!", "", [("write", {"text": '</tool_call> <think>" {'})]),
    ("thinking", '<think>Call it.\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n',
     "", "Call it.", [CITY]),
    ("thinking", '<think>Or <tool_call>{"name": "a"}</tool_call> perhaps.</think>No.', "No.",
     'Or \n<tool_call>{"name": "a"}</tool_call>\n perhaps.', []),
    ("thinking", "<think>Or <tool_call> perhaps.</think>No.", "No.", "Or \n<tool_call> perhaps.\n", []),
    ("opened", "Hm.\n</think>\n\nParis.", "Paris.", "Hm.", []),
    ("opened", "Hm, and", "", "Hm, and", []),
    ("plain", "Hm.</think>Paris.", "Paris.", "Hm.", []),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
     "Paris.", "Hm.", []),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>"
     "I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
     '{"city": "Oslo"}<|call|>', "I look.", "Hm.", [CITY]),
    ("harmony", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}', "", "", [CITY]),
    ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
     "<|start|>assistant<|channel|>final<|message|>c<|end|><|start|>assistant<|channel|>final<|message|>d",
     "c\nd", "a\nb", []),
    ("harmony", "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm", "", "Hm", []),
    ("harmony", "<|channel|>commentary to=python <|constrain|>code<|message|>1 + 1", "", "",
     [("commentary to=python code 1 + 1",)]),
    ("harmony", "<|channel|>final", "", "", []),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistantfinalParis", "Paris", "Hm.", []),
    ("harmony", "<|start|>assistantanalysisHm, so.<|end|>assistant Paris.<|end|>final, it is.",
     " Paris.\nfinal, it is.", "Hm, so.", []),
    ("harmony", "Hello there, you.", "Hello there, you.", "", []),
    ("harmony", "Hello there", "Hello there", "", []),
    ("harmony", "word " * 99, "word " * 99, "", []),
    ("harmony", "<|channel|>???<|end|><|start|>assistant<|channel|>final<|message|>Paris.", "???\nParis.", "", []),
    ("glimmer", " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Paris.<|eot|>", "Paris.", "Hm.", []),
    ("glimmer", " to=self<|message|>a<|eom|><|start|>assistant to=self<|message|>b<|start|>assistant to=user<|message|>"
     "c", "c", "a\nb", []),
    ("glimmer", f" to=self<|message|>Look.<|eom|><|start|>assistant to=weather<|message|>{INVOKED}<|eot|>", "", "Look.",
     [DAYS]),
    ("glimmer", f" to=weather<|message|>{INVOKED}<|eom|><|start|>assistant to=write<|message|><atem:function_calls>\n"
     '<atem:invoke name="write">\n<atem:parameter name="text"> <b>\n</atem:invoke> & 2\n</atem:parameter>\n'
     '<atem:parameter name="mode">null</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>', "", "",
     [DAYS, ("write", {"text": " <b>\n</atem:invoke> & 2\n", "mode": None})]),
    ("glimmer", f"<|message|>So:\n{INVOKED}", f"So:\n{INVOKED}", "", []),  # no message to a tool: shown, not called
    ("glimmer", " to=self<|message|>Hm, and", "", "Hm, and", []),
    ("glimmer", " to=us", "", "", []),
    ("glimmer", "Hello there, you.", "Hello there, you.", "", []),
    ("gemma4", "Paris.", "Paris.", "", []),
    ("gemma4", '<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:2}<tool_call|><|tool_call>call:write{text:<|"|>'
     '<tool_call|>{"a": 1}<|"|>, some key:[true,null,-1.5e3,{b:<|"|><|"|>}]}<tool_call|>done', "done", "",
     [DAYS, ("write", {"text": '<tool_call|>{"a": 1}', "some key": [True, None, -1500.0, {"b": ""}]})]),
    ("coder", "Now:\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n"
     "</parameter>\n</function>\n</tool_call>\nSo.", "Now:So.", "", [DAYS]),
    ("coder", "<function=write>\n<parameter=text>\n  </tool_call> </parameter>\n\n</parameter>\n<parameter=path>\n"
     "</parameter>\n<parameter=mode>\nNone\n</parameter>\n</function>\n</tool_call>", "", "",
     [("write", {"text": "  </tool_call> </parameter>\n", "path": "", "mode": None})]),
    ("coder", "<tool_call><function=weather><parameter=city>Oslo<parameter=days>2</function></tool_call>", "", "",
     [DAYS]),
    ("coder", '<tool_call><function=else><parameter=a>02</parameter><parameter=b>{"c": 3}</parameter></function>'
     "</tool_call>", "", "", [("else", {"a": "02", "b": {"c": 3}})]),
    ("glm", "<think>Hm.</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
     "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>", "", "Hm.", [DAYS]),
    ("glm", "<tool_call>write<arg_key>text</arg_key><arg_value></tool_call>\n</arg_value></tool_call>", "", "",
     [("write", {"text": "</tool_call>\n"})]),
    ("glm", "<tool_call>now</tool_call>", "", "", [("now", {})]),
    ("lfm", "<|tool_call_start|>[weather(city=\"Oslo\", days=2), now()]<|tool_call_end|>It is.", "It is.", "",
     [DAYS, ("now", {})]),
    ("lfm", "<think>\nHm.\n</think>\n\nParis.", "Paris.", "Hm.", []),
    ("lfm", "<think>Look.</think>I look.<|tool_call_start|>[write(path=\"a's\", text='say \"]\"', mode=None), "
     "write(mode=true, text={\"a\": [1, false, null], \"b\": \"(\"}, path=[-1.5e3, True])]<|tool_call_end|>",
     "I look.", "Look.",
     [("write", {"path": "a's", "text": 'say "]"', "mode": None}),
      ("write", {"mode": True, "text": {"a": [1, False, None], "b": "("}, "path": [-1500.0, True]})]),
    ("lfm", "<|tool_call_start|>[now()]<|tool_call_end|><|tool_call_start|>[weather(city='Oslo')]<|tool_call_end|>",
     "", "", [("now", {}), CITY]),
    ("olmo", "<function_calls>weather(city='Oslo')\nwrite(text='a\\'\\n</function_calls>', m={\"x\": (1, None)})\n"
     "</function_calls>", "", "", [CITY, ("write", {"text": "a'\n</function_calls>", "m": {"x": [1, None]}})]),
    ("phi", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|/tool_call|>', "", "", [CITY]),
    ("phi", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]', "", "", [CITY]),
    ("mistral", "[THINK]Hm.[/THINK]Yes:[TOOL_CALLS]weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]now[CALL_ID]abcdefghi"
     "[ARGS]{}", "Yes:", "Hm.", [CITY, ("now", {})]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "now"}]', "", "",
     [CITY, ("now", {})]),
    ("llama", '{"name": "weather", "parameters": {"city": "Oslo"}}', "", "", [CITY]),
    ("llama", '\n{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}; {"name": "now"}', "", "",
     [CITY, ("now", {})]),
    ("llama", 'So: <|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}', "So: ", "", [CITY]),
    ("llama", '{"city": "Oslo"} is JSON.', '{"city": "Oslo"} is JSON.', "", []),
    ("llama", '{"name": "Oslo"} is JSON.', '{"name": "Oslo"} is JSON.', "", []),
    ("llama", "{}", "{}", "", []),
    ("llama", "Oslo.", "Oslo.", "", []),
    ("deepseek", "Hm.\n</think>\n\nI call.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
     '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo", '
     '"days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "I call.", "Hm.", [CITY, DAYS]),
    ("seed", "<seed:think>Hm.</seed:think>So:\n<seed:tool_call>\n<function=weather>\n<parameter=city>Oslo"
     "</parameter>\n<parameter=days>2</parameter>\n</function>\n</seed:tool_call>", "So:", "Hm.", [DAYS]),
    ("seed", "<seed:think>Hm.</seed:think>Write <tool_call>, and </tool_call>.", "Write <tool_call>, and </tool_call>.",
     "Hm.", []),
    ("cohere", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Paris.<|END_RESPONSE|>", "Paris.", "Hm.", []),
    ("cohere", '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
     '"weather", "parameters": {"city": "Oslo"}},\n {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]'
     "<|END_ACTION|>", "", "Hm.", [CITY, ("now", {})]),
    ("cohere", "<|START_THINKING|>Hm.<|END_THINKING|><|START_TEXT|>Paris.<|END_TEXT|>", "Paris.", "Hm.", []),
    ("cohere", '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "write", "parameters": {"text": '
     '"<|END_ACTION|>"}}\n]<|END_ACTION|>', "", "", [("write", {"text": "<|END_ACTION|>"})]),
    ("exaone", 'Yes.\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n<tool_call>{"name": '
     '"now", "arguments": {}}</tool_call>', "Yes.", "", [CITY, ("now", {})]),
    ("ernie", "Hm.\n</think>\n\n\n<response>\nParis.\n</response>\n", "Paris.", "Hm.", []),
    ("ernie", "Hm.\n</think>\n\nThe tags <response> and </response>.", "The tags <response> and </response>.", "Hm.",
     []),
    ("ernie", 'Hm.\n</think>\n\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n', "",
     "Hm.", [CITY]),
    ("hunyuan", "<think>\nHm.\n</think>\n<answer>\nParis.\n</answer>", "Paris.", "Hm.", []),
    ("hunyuan", "<think>\n\n</think>\n<answer>\n<answer> is a tag.\n</answer>", "<answer> is a tag.", "", []),
    ("hunyuan", "A tag ends with </answer>.", "A tag ends with </answer>.", "", []),
    ("hunyuan", '<think>\nHm.\n</think>\n<tool_calls><tool_call>weather\n```json\n{"city": "Oslo"}\n```</tool_call>\n'
     '<tool_call>write\n```json\n{"text": "```</tool_call>"}\n```</tool_call></tool_calls>', "", "Hm.",
     [CITY, ("write", {"text": "```</tool_call>"})]),
    ("glm4", "\nParis.\n", "Paris.\n", "", []),
    ("glm4", 'weather\n{"city": "Oslo"}', "", "", [CITY]),
    ("glm4", '\nI look.<|assistant|>weather\n{"city": "Oslo"}<|assistant|>write\n\n{"text": "<|assistant|>"}\n',
     "I look.", "", [CITY, ("write", {"text": "<|assistant|>"})]),
    ("glm4", 'weather\n{"city": "Oslo"}<|assistant|>\nSo.<|assistant|>\nYes.', "So.\nYes.", "", [CITY]),
    ("glm4", "weather", "weather", "", []),
    ("glm4", "weather\n", "weather\n", "", []),
    ("glm4", "weather\nof {Oslo}", "weather\nof {Oslo}", "", []),
    ("glm4", 'The weather\n{"city": "Oslo"}', 'The weather\n{"city": "Oslo"}', "", []),
    ("glm4", 'other\n{"city": "Oslo"}', 'other\n{"city": "Oslo"}', "", []),
    ("glm4", '{"city": "Oslo"}', '{"city": "Oslo"}', "", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "speech", "thought", "calls"), REPLIES)
def test_a_reply_is_separated(forms, name, text, speech, thought, calls):
    assert read_as(forms, name, text) == (speech, thought, calls)


def test_a_thought_of_gemma_begins_with_its_name(forms):
    text = "<|channel>thought\nHm.\n<channel|>Paris."
    for reply, expected in [
        (text, ("Paris.", "Hm.", [])),
        (text.replace("thought\n", "thou"), ("Paris.", "thouHm.", [])),
        ("<|channel>thought<channel|>Paris.", ("Paris.", "", [])),
        ("<|channel>thought", ("", "", [])),
    ]:
        assert read_as(forms, "gemma4", reply, enable_thinking=True) == expected


def test_a_thought_that_the_template_begins_where_it_is_asked_to(forms):
    text = 'Hm.\n</think>\n\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    assert read_as(forms, "exaone", text, enable_thinking=True) == ("", "Hm.", [CITY])
    assert read_as(forms, "exaone", "Paris.") == ("Paris.", "", [])


def test_a_call_by_name_may_follow_a_thought(forms):
    """As of GLM-Z1, whose template begins a thought."""
    tokenizer, _ = forms["glm4"]
    template = ChatTemplate(
        tokenizer.chat_template.replace("<|assistant|>{% endif %}", "<|assistant|>\n<think>{% endif %}")
    )
    known = tokenizer.chat_template
    tokenizer.chat_template = template.source
    form = ReplyFormat.of(tokenizer, template)
    tokenizer.chat_template = known
    prompt = tokenizer.encode(template.render([{"role": "user", "content": "?"}]), bos=False, specials=True)
    for text, expected in [
        ('Hm.\n</think>\n\nweather\n{"city": "Oslo"}', ("", "Hm.", [CITY])),
        ("Hm.\n</think>\nweather\nis fine.", ("weather\nis fine.", "Hm.", [])),
        ("Hm, weather\n</think>So", ("So", "Hm, weather", [])),
        ('Hm.<|assistant|>weather\n{"city": "Oslo"}', ("", "Hm.", [CITY])),
        ('Hm.<|assistant|>weather\n{"city": "Oslo"}</think>No.',
         ("No.", 'Hm.\nweather\n{"city": "Oslo"}\n', [])),
        ("Hm.<|assistant|>we</think>No.", ("No.", "Hm.\nwe", [])),
    ]:  # fmt: skip
        parser = ReplyParser(form, tokenizer, prompt, tools=TOOLS)
        assert separated(by_token(parser, tokenizer.encode(text, bos=False, specials=True))) == expected


BROKEN = [
    ("thinking", '<tool_call>\n{"name": "weather", "arguments": {"city": "Os', "not valid JSON"),
    ("thinking", "<tool_call>", "no call"),
    ("thinking", "<tool_call>no JSON</tool_call>", "not valid JSON"),
    ("thinking", '<tool_call>{"arguments": {}}</tool_call>', "without the name"),
    ("thinking", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "not a JSON object"),
    ("thinking", '<tool_call>{"name": "a", "arguments": {"b": NaN}}</tool_call>', "not valid JSON"),
    ("thinking", '<tool_call>{"name": "a", "arguments": {"b": 1e999}}</tool_call>', "not finite"),
    ("thinking", "<tool_call>" + '{"name": ' + "[" * 100_000 + "</tool_call>", "not valid JSON"),
    ("thinking", '<tool_call>{"name": "a", "arguments": {"b": ' + "9" * 5000 + "}}</tool_call>", "not valid JSON"),
    ("coder", "<tool_call><function=a><parameter=b>rm -rf /", "no </function>"),
    ("coder", "<tool_call>a</tool_call>", "no <function"),
    ("glm", "<tool_call>a<arg_key>b</arg_key><arg_value>c</arg_value>", "cut"),
    ("glm", "<tool_call>two words<arg_key>b</arg_key><arg_value>c</arg_value></tool_call>", "no name"),
    ("glm", "<tool_call>a<arg_key>b</arg_key>c</tool_call>", "no argument"),
    ("gemma4", '<|tool_call>call:a{b:<|"|>c', "does not end"),
    ("gemma4", "<|tool_call>call:a no brace<tool_call|>", "no {"),
    ("gemma4", "<|tool_call>call:a{b:word}<tool_call|>", "no value"),
    ("gemma4", "<|tool_call>call:a{b:" + "[" * 99 + "<tool_call|>", "too deeply"),
    ("lfm", "<|tool_call_start|>[a(b=open('x'))]<|tool_call_end|>", "no value"),
    ("lfm", "<|tool_call_start|>a(1)<|tool_call_end|>", "no ="),
    ("lfm", '<|tool_call_start|>[weather(city="Os', "does not end"),
    ("lfm", '<|tool_call_start|>[weather(city="Oslo")<|tool_call_end|>', "no ]"),
    ("lfm", "<|tool_call_start|>Weather in Oslo<|tool_call_end|>", "no ("),
    ("mistral", "[TOOL_CALLS]a[ARGS]{", "not valid JSON"),
    ("mistral", '[TOOL_CALLS]a[ARGS]{"b": 1} c', "after the arguments"),
    ("llama", "<|python_tag|>print(1)", "not valid JSON"),
    ("cohere", '<|START_ACTION|>[{"name": "weather", "parameters": {}}]<|END_ACTION|>', "without the name"),
    ("cohere", '<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": ', "not valid JSON"),
    ("seed", "<seed:tool_call><function=a><parameter=b>rm -rf /", "no </function>"),
    ("deepseek", "</think><｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>", "no name"),
    ("hunyuan", '<tool_call>weather\n{"city": "Oslo"}</tool_call>', "no name"),
    ("hunyuan", '<tool_call>weather\n```json\n{"city": "Os', "no name"),
    ("hunyuan", "<tool_call>weather\n```json\n[]\n```</tool_call>", "not a JSON object"),
    ("exaone", '<tool_call>{"name": "weather", "arguments": {"city": "Os', "not valid JSON"),
    ("ernie", "</think><tool_call>\n</tool_call>", "no call"),
    ("glm4", 'weather\n{"city": "Os', "not valid JSON"),
    ("glm4", 'weather\n{"city": "Oslo"} and so on', "after the arguments"),
    ("harmony", '<|channel|>commentary to=functions.a<|message|>{"b": ', "not valid JSON"),
    ("glimmer", f" to=weather<|message|>{INVOKED.partition('2<')[0]}", "no </atem:invoke>"),
    ("glimmer", " to=weather<|message|>Weather in Oslo", "no <atem:invoke …>"),
]


@pytest.mark.parametrize(("name", "text", "words"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_a_broken_call_stays_visible(forms, name, text, words):
    tokenizer, form = forms[name]
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
    (part,) = by_token(parser, tokenizer.encode(text, bos=False, specials=True))
    call = part.call
    assert call is not None
    assert (call.name, call.arguments, call.id) == ("", "", "")
    assert words in str(call.error)
    marked = text.removeprefix("</think>")
    said = {"harmony": 'commentary to=functions.a {"b":', "glimmer": marked.replace("<|message|>", " ").strip()}
    assert call.written == said.get(name, marked)


def test_a_string_that_never_ends_costs_its_call_alone(forms):
    good = '<tool_call>{"name": "now"}</tool_call>'
    text = f'<tool_call>{{"name": "a, "arguments": {{}}}}</tool_call>\n<think>Hm.</think>So.{good}'
    speech, thought, calls = read_as(forms, "thinking", text)
    assert (speech, thought) == ("So.", "Hm.")
    assert calls == [('<tool_call>{"name": "a, "arguments": {}}</tool_call>',), ("now", {})]


def test_calls_have_ids(forms):
    tokenizer, form = forms["mistral"]
    text = "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]now[ARGS]{}"
    ids = tokenizer.encode(text, bos=False, specials=True)
    calls = [part.call for part in by_token(ReplyParser(form, tokenizer, calls=7), ids)]
    assert [call.id for call in calls if call is not None] == ["call00007", "abcdefghi", "call00009"]


def test_half_of_a_surrogate_pair_can_be_printed(forms):
    text = '<tool_call>{"name": "a", "arguments": {"b": "\\ud83d"}}</tool_call>'
    ((_, arguments),) = read_as(forms, "thinking", text)[2]
    assert arguments == {"b": "\ud83d"}
    tokenizer, form = forms["thinking"]
    (part,) = by_token(ReplyParser(form, tokenizer), tokenizer.encode(text))
    assert part.call is not None
    assert part.call.arguments.isascii()


def test_what_was_called_is_given_back_as_it_was_written(forms):
    """LFM2.5: calls, their results and the tools between control tokens; a thought before the last reply is gone."""
    tokenizer, form = forms["lfm"]
    written = '<|tool_call_start|>[weather(city="Oslo", days=2), now()]<|tool_call_end|>'
    ids = tokenizer.encode(f"<think>Look.</think>{written}", bos=False, specials=True)
    speech, thought, calls = separated(by_token(ReplyParser(form, tokenizer, tools=TOOLS), ids))
    assert (speech, thought, calls) == ("", "Look.", [DAYS, ("now", {})])
    template = ChatTemplate.of(tokenizer)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "<think>Look.</think>",
            "tool_calls": [{"function": {"name": name, "arguments": values}} for name, values in calls],
        },
        {"role": "tool", "content": "<|tool_call_end|> 5 C"},
    ]
    parts = chat_parts(tokenizer, template, turns, tools=TOOLS[:1])
    text = "".join(part for part, _ in parts)
    assert text.startswith("<|im_start|>system\nBe brief.\nList of tools: <|tool_list_start|>[{")
    assert f"<|im_start|>assistant\n{written}<think>Look.</think><|im_end|>\n<|im_start|>tool\n" in text
    assert text.endswith("<|tool_response_start|><|tool_call_end|> 5 C<|tool_response_end|><|im_end|>\n"
                         "<|im_start|>assistant\n")  # fmt: skip
    assert ("<|tool_call_end|>", False) in parts  # what a tool said is text
    found = tokenizer.encode_parts(parts)
    assert [found.count(tokenizer.controls[f"<|tool_call_{end}|>"]) for end in ("start", "end")] == [1, 1]
    later = [*turns, {"role": "assistant", "content": "5 C."}, {"role": "user", "content": "And now?"}]
    assert "Look." not in template.render(later)
    assert "<think>Look.</think>" in template.render(later, keep_past_thinking=True)


def test_messages_go_back_to_whom_they_were(forms):
    """Muse Glimmer: what a model thought, called and said, and what the tool answered."""
    tokenizer, form = forms["glimmer"]
    written = f" to=self<|message|>Look.<|eom|><|start|>assistant to=weather<|message|>{INVOKED}"
    ids = tokenizer.encode(f"{written}<|eot|>", bos=False, specials=True)
    speech, thought, ((name, values),) = separated(by_token(ReplyParser(form, tokenizer, tools=TOOLS), ids))
    assert not speech
    turns = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": thought,
            "tool_calls": [{"function": {"name": name, "arguments": values}}],
        },
        {"role": "tool", "name": name, "content": "<|eot|> 5 C"},
    ]
    parts = chat_parts(tokenizer, ChatTemplate.of(tokenizer), turns)
    text = "".join(part for part, _ in parts)
    assert text == (
        f"<|start|>user<|message|>Weather?<|eot|><|start|>assistant{written}<|eot|><|start|>tool weather<|message|>"
        '<tool_output name="weather">\n<|eot|> 5 C\n</tool_output><|eot|><|start|>assistant'
    )
    assert ("<|eot|>", False) in parts  # what a tool said is text


# ---------------------------------------------------------------- what is a marker


@pytest.mark.parametrize("name", ["harmony", "glimmer", "gemma4", "mistral", "lfm", "deepseek"])
def test_literals_of_control_tokens_are_text_unless_they_are_the_tokens(forms, name):
    tokenizer, form = forms[name]
    text = "".join(FORMS[name].controls) + " and <tool_call> {name}, so."
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?", enable_thinking=False), tools=TOOLS)
    speech, thought, calls = separated(by_token(parser, tokenizer.encode(text, bos=False, specials=False)))
    assert (speech + thought, calls) == (text, [])


def test_literals_inside_arguments_are_text(forms):
    tokenizer, form = forms["harmony"]
    inside = '{"text": "<|call|><|end|>"}'
    ids = tokenizer.encode("<|channel|>commentary to=functions.write<|message|>", bos=False, specials=True)
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"))
    assert separated(by_token(parser, [*ids, *tokenizer.encode(inside, bos=False)])) == (
        "", "", [("write", {"text": "<|call|><|end|>"})],
    )  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_what_a_person_types_does_not_decide_how_the_reply_is_read(forms, name):
    tokenizer, form = forms[name]
    for asked in ("<think>", "</think>", "<tool_call>", "[THINK]", "{", "<|channel>thought\n"):
        marked = prompt_of(tokenizer, "\x00")
        place = marked.index(tokenizer.encode("\x00", bos=False)[0])
        prompt = [*marked[:place], *tokenizer.encode(asked, bos=False), *marked[place + 1 :]]
        for ids in (prompt, marked):
            parser = ReplyParser(form, tokenizer, ids)
            found = separated(by_token(parser, tokenizer.encode("Hello, you.", bos=False)))
            opened = name in ("opened", "plain", "deepseek", "ernie")
            assert found == (("", "Hello, you.", []) if opened else ("Hello, you.", "", [])), asked


def test_calls_without_a_marker_need_tools(forms):
    bare = '{"name": "now", "parameters": {}}'
    assert read_as(forms, "llama", bare, tools=None) == (bare, "", [])
    bare = 'weather\n{"city": "Oslo"}'
    assert read_as(forms, "glm4", bare, tools=None) == (bare, "", [])
    bare = "<function=now>\n</function>\n</tool_call>"
    assert read_as(forms, "coder", bare, tools=None)[0].startswith("<function=now>")


def test_a_base_model_and_a_template_that_fails_speak(forms):
    tokenizer, _ = forms["thinking"]
    assert ReplyFormat.of(tokenizer, None) == ReplyFormat()
    form = ReplyFormat.of(tokenizer, ChatTemplate("{{ raise_exception('no') }}"))
    assert (form.header, form.opening) == (None, "")
    assert separated(by_token(ReplyParser(form, tokenizer), tokenizer.encode("<think>a</think>b"))) == ("b", "a", [])


def test_the_table_can_be_read_in_one_way():
    markers = {literal for block in BLOCKS for literal in (block.begin, *block.ends)} | NOISE
    assert not [(a, b) for a in markers for b in markers if a != b and a.startswith(b) and b != "{"]
    calls = [*(block for block in BLOCKS if block.kind == "tool_call"), *(dialect.call for dialect in DIALECTS)]
    assert {block.notation for block in calls} == {*NOTATIONS, ""}


def test_tools_of_any_form_are_taken(forms):
    for tools in ([None, 3, {"function": 4}, {"name": "now"}, {"name": "a", "parameters": {"properties": 5}}], []):
        assert read_as(forms, "thinking", '<tool_call>{"name": "now"}</tool_call>', tools=tools)[2] == [("now", {})]


# ---------------------------------------------------------------- properties


def pieces_of(name: str) -> st.SearchStrategy[list[str]]:
    """Beginnings, ends and middles of what a form knows, and what stands between them."""
    own = [*FORMS[name].controls, *(text for form, text, *_ in [*REPLIES, *BROKEN] if form == name and len(text) < 999)]
    marks = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=a>", "</function>", "<parameter=b>\n"]
    rest = ["\n", "\n\n", " ", "é🎉", '"', "\\", "{", "}", '{"name": "a"}', "word", "assistant", "final", "analysis"]
    return st.lists(st.sampled_from([*own, *marks, *rest]), max_size=8)


def split(parser: ReplyParser, tokens: list[int | str]) -> list[Part]:
    return [
        *(part for x in tokens for part in (parser.push(x) if isinstance(x, int) else parser.push_text(x))),
        *parser.finish(),
    ]


def whole_and_parts(tokenizer: Tokenizer, text: str) -> tuple[list[int | str], list[int | str]]:
    """Text with control tokens between it; the same with every character by itself."""
    whole: list[int | str] = []
    for i, piece in enumerate(tokenizer.control_pattern.split(text)):
        if piece:
            whole.append(tokenizer.controls[piece] if i % 2 else piece)
    return whole, [x for item in whole for x in ([item] if isinstance(item, int) else item)]


@pytest.mark.parametrize("size", [1, 7])
def test_replies_in_pieces_are_separated_alike(forms, size):
    for name, text, *expected in REPLIES:
        tokenizer, form = forms[name]
        whole, _ = whole_and_parts(tokenizer, text)
        pieces = [
            piece
            for item in whole
            for piece in ([item] if isinstance(item, int) else [item[i : i + size] for i in range(0, len(item), size)])
        ]
        parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
        assert separated(split(parser, pieces)) == tuple(expected), text


@pytest.mark.parametrize("name", FORMS)
def test_a_stream_gives_what_the_whole_gives(forms, name):
    tokenizer, form = forms[name]
    prompts = [prompt_of(tokenizer, "?"), prompt_of(tokenizer, "?", enable_thinking=True)]

    @given(pieces_of(name), st.sampled_from(prompts), st.sampled_from([None, TOOLS]), st.lists(st.integers(0, 400)))
    @settings(max_examples=30)
    @example(['<tool_call>{"name": "a, "b": {}}</tool_call>', "x", "<tool_call>"], prompts[0], None, [])
    def check(pieces, prompt, tools, cuts):
        text = "".join(pieces)

        def parser() -> ReplyParser:
            return ReplyParser(form, tokenizer, prompt, tools=tools)

        whole, characters = whole_and_parts(tokenizer, text)
        expected = separated(split(parser(), whole))
        assert separated(split(parser(), characters)) == expected
        assert separated(by_token(parser(), tokenizer.encode(text, bos=False, specials=True))) == expected
        places = sorted({0, len(characters), *(cut for cut in cuts if cut < len(characters))})
        groups = [joined(characters[a:b]) for a, b in pairwise(places)]
        assert separated(split(parser(), [x for group in groups for x in group])) == expected

    check()


def joined(items: list[int | str]) -> list[int | str]:
    """The same, texts beside each other as one."""
    found: list[int | str] = []
    for item in items:
        if isinstance(item, str) and found and isinstance(found[-1], str):
            found[-1] += item
        else:
            found.append(item)
    return found


@pytest.mark.parametrize("name", FORMS)
def test_nothing_but_markers_and_line_ends_is_lost(forms, name):
    """The letters of a reply are in its parts, once each and in order, whatever stands between them."""
    tokenizer, form = forms[name]

    @given(st.lists(st.sampled_from([*FORMS[name].controls, "<think>", "</think>", "<tool_call>", "</tool_call>", '"']
                                    + ["\n", " ", "{", "}"] + [f"§{c}" for c in "abcdefgh"]), max_size=12))  # fmt: skip
    @settings(max_examples=30)
    def check(pieces):
        parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
        parts = by_token(parser, tokenizer.encode("".join(pieces), bos=False, specials=True))
        shown = "".join(part.text if part.call is None else part.call.written for part in parts)
        assert [c for c in shown if c == "§"] == [c for c in "".join(pieces) if c == "§"]

    check()


@given(st.sampled_from(sorted(NOTATIONS)), st.text(st.sampled_from("a\"'\\{}[]()<>|=:,./ \n1-e`") | st.characters()))
@settings(max_examples=200)
def test_a_notation_gives_calls_or_a_reason(notation, text):
    try:
        calls = read(notation, text, {}, "")
    except Malformed:
        return
    assert all(isinstance(json.loads(call.arguments), dict) and call.name for call in calls)
    assert calls


@pytest.mark.parametrize("notation", NOTATIONS)
def test_long_arguments_are_read(notation):
    value = "the fox " * 20_000
    text = {
        "json": json.dumps({"name": "a", "arguments": {"b": value}}),
        "cohere": json.dumps([{"tool_call_id": "0", "tool_name": "a", "parameters": {"b": value}}]),
        "mistral": f"a[ARGS]{json.dumps({'b': value})}",
        "fenced": f"a\n```json\n{json.dumps({'b': value})}\n```",
        "named": f"a\n{json.dumps({'b': value})}",
        "deepseek": f"a<｜tool▁sep｜>{json.dumps({'b': value})}",
        "xml": f"<function=a>\n<parameter=b>\n{value}\n</parameter>\n</function>",
        "arg_keys": f"a<arg_key>b</arg_key><arg_value>{value}</arg_value>",
        "invoked": f'<atem:invoke name="a"><atem:parameter name="b">{value}</atem:parameter></atem:invoke>',
        "gemma": f'call:a{{b:<|"|>{value}<|"|>}}',
        "python": f"[a(b='{value}')]",
    }[notation]
    (call,) = read(notation, text, {}, "")
    assert (call.name, json.loads(call.arguments)) == ("a", {"b": value})
