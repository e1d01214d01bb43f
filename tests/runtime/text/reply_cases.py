"""Replies of every form with what is said, thought and called in them, broken ones too, and how tests read them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from partita.text.chat_template import ChatTemplate
from partita.text.reply.parser import Part, ReplyFormat, ReplyParser
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
