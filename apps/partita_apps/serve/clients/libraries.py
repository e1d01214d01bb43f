"""Libraries and the command llm. The programs are run as they stand by tests/apps/serve/test_clients.py."""

from __future__ import annotations

from .guide import KEY_VARIABLE, Client, File, Server, Settings, quoted


def openai(server: Server) -> Settings:
    return Settings(
        python=f"""\
{_import(server)}from openai import OpenAI

client = OpenAI(base_url={quoted(server.v1)}, api_key={_key(server)})
reply = client.chat.completions.create(
    model={quoted(server.model)},
    messages=[{{"role": "user", "content": "What is the capital of France?"}}],
)
print(reply.choices[0].message.content)
""",
        notes=("client.responses works too, and client.completions, which takes text as it is.",),
    )


def anthropic(server: Server) -> Settings:
    return Settings(
        python=f"""\
{_import(server)}from anthropic import Anthropic

client = Anthropic(base_url={quoted(server.url)}, api_key={_key(server)})
reply = client.messages.create(
    model={quoted(server.model)},
    max_tokens=200,
    messages=[{{"role": "user", "content": "What is the capital of France?"}}],
)
print(reply.content[0].text)
"""
    )


def llm(server: Server) -> Settings:
    key = "  api_key_name: partita\n" if server.keyed else ""
    models = f"""\
- model_id: partita
  model_name: {quoted(server.model)}
  api_base: {server.v1}
{key}"""
    steps = ("llm keys set partita, and type the key",) if server.keyed else ()
    place = "~/.config/io.datasette.llm/extra-openai-models.yaml"
    return Settings(
        files=(File(place, models),),
        steps=steps,
        start="llm -m partita 'What is the capital of France?'",
        notes=(
            "On macOS the folder is ~/Library/Application Support/io.datasette.llm; LLM_USER_PATH names another one.",
        ),
    )


def _import(server: Server) -> str:
    return "import os\n\n" if server.keyed else ""


def _key(server: Server) -> str:
    return f'os.environ["{KEY_VARIABLE}"]' if server.keyed else f'"{server.key}"'


LIBRARIES = (
    Client("openai", "openai, the Python library", "/v1/chat/completions", openai, ran="openai 3.57.0"),
    Client("anthropic", "anthropic, the Python library", "/v1/messages", anthropic, ran="anthropic 2.14.0"),
    Client("llm", "llm", "/v1/chat/completions", llm, ran="llm 0.36"),
)
