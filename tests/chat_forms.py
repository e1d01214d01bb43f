"""The forms of replies, for tests: small vocabularies and templates with the markers that published models have.

The templates are cut down to what decides how a reply is read and what the next turn is given of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests import conftest

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_CALLS = (
    '{% for c in m.tool_calls %}{{ "\\n" }}<tool_call>\n{"name": {{ c.function.name | tojson }}, '
    '"arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
# thoughts of earlier turns are left out; those since the last question stay
_THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    f"{{{{ m.content }}}}{_CALLS}<|im_end|>\n{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}{_ASKS}"
)
_HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# every message of the model says whom it is to: itself, the user, or the tool that it calls
_GLIMMER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<|start|>assistant to=self<|message|>{{ m.reasoning_content }}<|eom|>{% endif %}"
    "{% for c in m.tool_calls %}<|start|>assistant to={{ c.function.name }}<|message|><atem:function_calls>\n"
    '<atem:invoke name="{{ c.function.name }}">\n{% for k, x in c.function.arguments.items() %}'
    '<atem:parameter name="{{ k }}">{{ x if x is string else x | tojson }}</atem:parameter>\n{% endfor %}'
    "</atem:invoke>\n</atem:function_calls>{{ '<|eot|>' if loop.last else '<|eom|>' }}{% endfor %}"
    "{% if m.content %}<|start|>assistant to=user<|message|>{{ m.content }}<|eot|>{% endif %}"
    "{% elif m.role == 'tool' %}<|start|>tool {{ m.name }}<|message|>"
    '<tool_output name="{{ m.name }}">\n{{ m.content }}\n</tool_output><|eot|>'
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_GEMMA = (
    "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
_CHATML = f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_ASKS}{{% endif %}}"
# tools, and results of calls, between control tokens; calls as Python, of whose values objects alone are JSON; thoughts
# are taken out of what was said before the last reply
_LFM = (
    "{% set keep_past_thinking = keep_past_thinking | default(false) %}"
    '{% macro value(x) %}{% if x is string %}"{{ x }}"{% elif x is mapping %}{{ x | tojson }}'
    "{% else %}{{ x | string }}{% endif %}{% endmacro %}"
    "{% set ns = namespace(system='', last=-1) %}"
    "{% if messages and messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% endif %}"
    "{% if tools %}{% set ns.system = ns.system ~ ('\n' if ns.system else '') ~ 'List of tools: <|tool_list_start|>'"
    " ~ (tools | tojson) ~ '<|tool_list_end|>' %}{% endif %}"
    "{% if ns.system %}<|im_start|>system\n{{ ns.system }}<|im_end|>\n{% endif %}"
    "{% for m in messages if m.role == 'assistant' %}{% set ns.last = messages.index(m) %}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{% set said = m.content or '' %}"
    "{% if m.role == 'tool' %}<|tool_response_start|>{{ said }}<|tool_response_end|>"
    "{% elif m.role == 'assistant' %}"
    "{% if '</think>' in said and not keep_past_thinking and messages.index(m) != ns.last %}"
    "{% set said = said.split('</think>')[-1] | trim %}{% endif %}"
    "{% if m.tool_calls %}<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, x in c.function.arguments.items() %}{{ k }}={{ value(x) }}{% if not loop.last %}, {% endif %}"
    "{% endfor %}){% if not loop.last %}, {% endif %}{% endfor %}]<|tool_call_end|>{% endif %}{{ said }}"
    "{% else %}{{ said }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
_LLAMA = (
    "{# Environment: ipython #}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_GLM4 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.metadata }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_HUNYUAN = (
    "{# <think></think> <answer></answer> <tool_calls><tool_call></tool_call></tool_calls> <tool_responses> #}"
    "{% for m in messages %}{% if m.role == 'user' %}<｜hy_User｜>{{ m.content }}<｜hy_Assistant｜>{% else %}"
    "{{ m.content.split('<answer>')[-1] }}<｜hy_place▁holder▁no▁2｜>{% endif %}{% endfor %}"
)
_ERNIE = (
    "{# <tool_call></tool_call> <response></response> #}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
_SEED = "{# <seed:think></seed:think> <seed:tool_call> <function=a>\n<parameter=b>value</parameter>\n</function> #}"
_EXAONE = (
    '{# <tool_call>{"name": function_1_name, "arguments": {}}</tool_call> #}'
    "{% for m in messages %}[|{{ m.role }}|]\n{{ m.content }}[|endofturn|]\n{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]\n"
    "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)


@dataclass(frozen=True)
class Form:
    """controls: literals of control tokens, the one that ends a reply last."""

    controls: tuple[str, ...]
    template: str


_CHATML_CONTROLS = ("<|im_start|>", "<|im_end|>")
FORMS = {
    "thinking": Form(_CHATML_CONTROLS, f"{_THINKING}{{% endif %}}"),
    "opened": Form(_CHATML_CONTROLS, f"{_THINKING}<think>\n{{% endif %}}"),
    "harmony": Form(
        ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"), _HARMONY
    ),
    "glimmer": Form(("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"), _GLIMMER),
    "gemma4": Form(("<|turn>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<turn|>"), _GEMMA),
    "coder": Form(_CHATML_CONTROLS, f"{{# <think></think> <tool_call> <function= #}}{_CHATML}"),
    "glm": Form(_CHATML_CONTROLS, f"{{# <think></think> <tool_call> <arg_key> #}}{_CHATML}"),
    "lfm": Form(
        (
            *(f"<|tool_{part}_{end}|>" for part in ("list", "call", "response") for end in ("start", "end")),
            *_CHATML_CONTROLS,
        ),
        _LFM,
    ),
    "phi": Form(("<|tool_call|>", "<|/tool_call|>", *_CHATML_CONTROLS), _CHATML),
    "olmo": Form(_CHATML_CONTROLS, f"{{# <think></think> <function_calls> #}}{_CHATML}"),
    "mistral": Form(
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "</s>"), _MISTRAL
    ),
    "llama": Form(("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eot_id|>"), _LLAMA),
    "deepseek": Form(
        (
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
            "<｜end▁of▁sentence｜>",
        ),
        _DEEPSEEK,
    ),
    "seed": Form(_CHATML_CONTROLS, f"{_SEED}{_CHATML}"),
    "cohere": Form(
        (
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
            "<|START_TEXT|>",
            "<|END_TEXT|>",
            *_CHATML_CONTROLS,
        ),
        _CHATML,
    ),
    "glm4": Form(("<|system|>", "<|assistant|>", "<|observation|>", "<|user|>"), _GLM4),
    "hunyuan": Form(("<｜hy_User｜>", "<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁2｜>"), _HUNYUAN),
    "ernie": Form(_CHATML_CONTROLS, _ERNIE),
    "exaone": Form(("[|user|]", "[|assistant|]", "[|endofturn|]"), _EXAONE),
    "plain": Form(("<|end|>",), _PLAIN),
    "none": Form(_CHATML_CONTROLS, _CHATML),
}


WITHOUT_TOOLS = frozenset({"opened", "plain", "none"})
"""Forms whose templates have no place for tools; those of the others mention them, as the published ones do."""


def write_tokenizer(folder: Path, name: str) -> int:
    """The tests' vocabulary with a form's control tokens behind it; its size."""
    from tokenizers import AddedToken, Tokenizer

    form = FORMS[name]
    conftest.write_tokenizer(folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(literal, normalized=False, special=True) for literal in form.controls])
    tokenizer.save(str(path))
    template = form.template if name in WITHOUT_TOOLS else f"{{# tools #}}{form.template}"
    config = {"eos_token": form.controls[-1], "add_bos_token": False, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def write_model(folder: Path, name: str) -> Path:
    """A tiny model of random weights whose replies are read in this form."""
    folder.mkdir(parents=True)
    size = write_tokenizer(folder, name)
    conftest.write_config(folder, size)
    conftest.write_weights(folder, size)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    return folder
