"""Editors and applications, as their documentation says. None of them was run against the server."""

from __future__ import annotations

from .guide import Client, File, Server, Settings, pretty, quoted


def vscode(server: Server) -> Settings:
    model = {
        "id": server.model,
        "name": server.model,
        "url": f"{server.v1}/chat/completions",
        "toolCalling": True,
        "vision": False,
        "maxInputTokens": server.context - server.reply,
        "maxOutputTokens": server.reply,
    }
    provider = {"name": "partita", "vendor": "customendpoint", "apiType": "chat-completions", "models": [model]}
    return Settings(
        steps=(
            "Run the command Chat: Manage Language Models, then Add Models, Custom Endpoint",
            f"Group name: partita; API key: {server.key}; API type: Chat Completions",
            "Put the entry of `models` into the file that VS Code opens, beside the key that it wrote",
        ),
        files=(File("chatLanguageModels.json", pretty([provider])),),
    )


def zed(server: Server) -> Settings:
    model = {"name": server.model, "max_tokens": server.context, "max_output_tokens": server.reply}
    provider = {"api_url": server.v1, "available_models": [model]}
    settings = {"language_models": {"openai_compatible": {"partita": provider}}}
    return Settings(
        files=(File("~/.config/zed/settings.json", pretty(settings)),),
        environment={"PARTITA_API_KEY": server.shell_key} if not server.keyed else {},
        start="zed",
        notes=("Zed reads the key of a provider from a variable with its name, or from its settings' page.",),
    )


def continue_(server: Server) -> Settings:
    config = f"""\
name: partita
version: 0.0.1
schema: v1
models:
  - name: {quoted(server.model)}
    provider: openai
    model: {quoted(server.model)}
    apiBase: {server.v1}
    apiKey: {server.key}
    roles: [chat, edit, apply]
    capabilities: [tool_use]
    defaultCompletionOptions:
      contextLength: {server.context}
      maxTokens: {server.reply}
"""
    return Settings((File("~/.continue/config.yaml", config),))


def cline(server: Server) -> Settings:
    return Settings(
        steps=(
            "Settings, API Provider: OpenAI Compatible",
            f"Base URL: {server.v1}",
            f"API Key: {server.key}",
            f"Model ID: {server.model}",
            f"Model Configuration, Context Window Size: {server.context}; Max Output Tokens: {server.reply}",
        )
    )


def open_webui(server: Server) -> Settings:
    return Settings(
        environment={"OPENAI_API_BASE_URL": server.v1, "OPENAI_API_KEY": server.shell_key},
        start="open-webui serve",
        notes=(
            "In a page of Open WebUI that runs: Settings, Admin, Connections, Add Connection, with the same URL.",
            "In Docker on Linux: `docker run --network host`; with host.docker.internal in the URL the server needs "
            "`--host 0.0.0.0 --api-key KEY --allow-host host.docker.internal`.",
        ),
    )


def home_assistant(server: Server) -> Settings:
    return Settings(
        steps=(
            "Settings, Devices & services, Add integration: llama.cpp (Home Assistant 2026.7 or newer)",
            f"URL: {server.v1}, with this machine's address where Home Assistant runs on another one",
            f"API key: {server.key if server.keyed else 'none'}",
            f"Model: {server.model}",
        ),
        notes=(
            "For another machine: `partita serve --host 0.0.0.0 --api-key KEY`, and `--allow-host NAME` where the URL "
            "has a name in place of an address.",
        ),
    )


def obsidian(server: Server) -> Settings:
    return Settings(
        steps=(
            "Start the server with `--allow-origin app://obsidian.md`",
            "In the plugin Copilot: Settings, Model, Add Custom Model",
            f"Model Name: {server.model}; Provider: 3rd party (openai-format)",
            f"Base URL: {server.v1}; API Key: {server.key}",
        ),
        notes=(
            "Other plugins want the same; one that asks through Obsidian itself sends no origin and needs no option.",
        ),
    )


APPS = (
    Client("vscode", "VS Code, its chat", "/v1/chat/completions", vscode),
    Client("zed", "Zed", "/v1/chat/completions", zed),
    Client("continue", "Continue", "/v1/chat/completions", continue_),
    Client("cline", "Cline", "/v1/chat/completions", cline),
    Client("open-webui", "Open WebUI", "/v1/chat/completions", open_webui),
    Client("home-assistant", "Home Assistant", "/v1/chat/completions", home_assistant),
    Client("obsidian", "Obsidian", "/v1/chat/completions", obsidian),
)
