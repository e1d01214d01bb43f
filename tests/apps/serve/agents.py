"""What coding agents send with a turn, written after recordings of them: their shapes, with words of our own."""

from __future__ import annotations

from typing import Any


def _schema(**properties: str) -> dict[str, Any]:
    typed = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "properties": typed, "required": list(properties), "additionalProperties": False}


def _function(name: str, **properties: str) -> dict[str, Any]:
    about = {"type": "function", "name": name, "description": f"Does {name}.", "strict": False}
    return {**about, "parameters": _schema(**properties)}


def codex(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`POST /v1/responses` of Codex: two developers' messages in front, nine tools, hints. items: what follows."""

    def says(role: str, *texts: str) -> dict[str, Any]:
        parts = [{"type": "input_text", "text": text} for text in texts]
        return {"type": "message", "id": f"msg_{role}", "role": role, "content": parts}

    calendar = {"type": "namespace", "name": "mcp__calendar", "description": "A calendar."}
    functions = ("shell", "update_plan", "view_image", "list_mcp_resources", "read_mcp_resource", "spawn_agent")
    return {
        "model": "tiny",
        "input": [
            says("developer", "You are a coding agent.", "The sandbox is read-only."),
            says("developer", "Be brief."),
            says("user", "<environment_context>cwd</environment_context>"),
            says("user", "hi"),
            *items,
        ],
        "tools": [
            *(_function(name, command="string") for name in functions),
            {**calendar, "tools": [_function("list", day="string"), _function("add", day="string")]},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
            },
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-aaaa",
        "client_metadata": {"x-codex-installation-id": "1"},
        "text": {"verbosity": "low"},
        **more,
    }


def claude_code(*turns: dict[str, Any], later: bool = False, **more: Any) -> dict[str, Any]:
    """`POST /v1/messages?beta=true` of Claude Code. turns: what follows its first question. later: as on a second turn,
    where the system's message is text instead of a list."""
    cached = {"cache_control": {"type": "ephemeral"}}
    note = "The current date is a Friday."
    return {
        "model": "tiny",
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={int(later)}"},
            {"type": "text", "text": "You are a coding agent.", **cached},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>cwd</system-reminder>"},
                    {"type": "text", "text": "hi", **({} if later else cached)},
                ],
            },
            {"role": "system", "content": note if later else [{"type": "text", "text": note}]},
            *turns,
        ],
        "tools": [
            {"name": "Bash", "description": "Runs.", "input_schema": _schema(command="string")},
            {
                "name": "Read",
                "description": "Reads.",
                "input_schema": _schema(path="string"),
                "eager_input_streaming": True,
            },
            {"name": "Later", "description": "Later.", "input_schema": _schema(), "defer_loading": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "someone"},
        "stream": True,
        **more,
    }


BETAS = ",".join(
    (
        *("claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"),
        *(
            "prompt-caching-scope-2026-01-05",
            "effort-2025-11-24",
            "advanced-tool-use-2025-11-20",
            "mid-conversation-system",
        ),
    )
)
"""The header `anthropic-beta` of Claude Code."""
