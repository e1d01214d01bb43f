"""Coding agents in a terminal. tests/apps/serve/test_agents.py runs those that `ran` with these very settings."""

from __future__ import annotations

import shlex

from .guide import KEY_VARIABLE, Client, File, Server, Settings, pretty, quoted


def codex(server: Server) -> Settings:
    key = f'env_key = "{KEY_VARIABLE}"\n' if server.keyed else ""
    config = f"""\
model = {quoted(server.model)}
model_provider = "partita"
model_context_window = {server.context}

[model_providers.partita]
name = "partita"
base_url = {quoted(server.v1)}
wire_api = "responses"
{key}"""
    local = shlex.join(["codex", "--oss", "--local-provider", "lmstudio", "-m", server.model])
    port = "" if server.port == "1234" else f"CODEX_OSS_PORT={server.port} "
    notes = () if server.keyed else (f"Without a file: {port}{local}",)
    return Settings((File("~/.codex/config.toml", config),), start="codex", notes=notes)


def claude_code(server: Server) -> Settings:
    models = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    environment = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.shell_key,
        **dict.fromkeys(models, shlex.quote(server.model)),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(server.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.reply),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return Settings(
        environment=environment,
        start="claude",
        notes=(
            "Without CLAUDE_CODE_MAX_CONTEXT_TOKENS it takes the context for a million tokens and summarizes too late.",
        ),
    )


def pi(server: Server) -> Settings:
    model = {"id": server.model, "contextWindow": server.context, "maxTokens": server.reply}
    key = KEY_VARIABLE if server.keyed else server.key
    provider = {"baseUrl": server.v1, "api": "openai-completions", "apiKey": key, "models": [model]}
    file = File("~/.pi/agent/models.json", pretty({"providers": {"partita": provider}}))
    return Settings((file,), start=shlex.join(["pi", "--provider", "partita", "--model", server.model]))


def opencode(server: Server) -> Settings:
    key = f"{{env:{KEY_VARIABLE}}}" if server.keyed else server.key
    limit = {"context": server.context, "output": server.reply}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": server.v1, "apiKey": key},
        "models": {server.model: {"limit": limit}},
    }
    config = {"model": f"partita/{server.model}", "provider": {"partita": provider}}
    note = "In a context that is shorter than its first request it summarizes again and again, without an end."
    return Settings((File("~/.config/opencode/opencode.json", pretty(config)),), start="opencode", notes=(note,))


def aider(server: Server) -> Settings:
    limits = {
        "max_input_tokens": server.context - server.reply,
        "max_output_tokens": server.reply,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    return Settings(
        files=(File("~/.aider.model.metadata.json", pretty({f"openai/{server.model}": limits})),),
        environment={"OPENAI_API_BASE": server.v1, "OPENAI_API_KEY": server.shell_key},
        start=shlex.join(["aider", "--model", f"openai/{server.model}"]),
    )


AGENTS = (
    Client("codex", "Codex CLI", "/v1/responses", codex, needs=8_800, ran="codex-cli 0.171.0"),
    Client("claude-code", "Claude Code", "/v1/messages", claude_code, needs=12_700, ran="Claude Code 2.1.332"),
    Client("opencode", "opencode", "/v1/chat/completions", opencode, needs=7_600, ran="opencode-ai 1.18.33"),
    Client("pi", "pi", "/v1/chat/completions", pi, needs=1_400, ran="pi-coding-agent 0.73.1"),
    Client("aider", "aider", "/v1/chat/completions", aider, needs=600, ran="aider-chat 0.86.2"),
)
