"""The parent's half of a model: what its files say, and transcripts of conversations that grow side by side."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from partita.inference.sampling import Sampling
from partita.text.chat_template import encode_chat
from partita_apps.serve import model_text
from partita_apps.serve.model_text import ModelText
from partita_apps.serve.turns import merged, normalized

from ...conftest import TEMPLATE


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.fixture
def text(tiny_model: Path) -> ModelText:
    return ModelText.open("tiny", tiny_model, context=128)


def encoded(text: ModelText, *messages: dict[str, Any]) -> model_text.Prompt:
    return asyncio.run(text.encode(messages, {}))


def test_the_default_model_is_opened_without_its_weights(default_model: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from partita_apps.serve.model_text import ModelText\n"
        "text = ModelText.open('smollm2', Path(sys.argv[1]), context=8192)\n"
        "print(text.usual.temperature, text.rows, *{'torch', 'mlx', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(default_model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0.7", "49152"]


def test_ids_are_those_of_the_template(text: ModelText) -> None:
    turns = [user("the quick"), assistant("brown fox"), user("jumps")]
    for count in (1, 3, 2, 3, 1):
        expected = encode_chat(text.tokenizer, text.template, turns[:count])
        assert encoded(text, *turns[:count]).ids == expected


def test_two_conversations_that_begin_alike_do_not_disturb_each_other(text: ModelText) -> None:
    """Each reply, generated letter by letter, is found again by the conversation that it belongs to."""
    prompt = encoded(text, user("the quick brown fox"))
    replies = [[i for letter in reply for i in text.tokenizer.encode(letter, bos=False)] for reply in ("the", "then")]
    for ids in replies:
        text.add_reply(prompt, ids)
    for ids in replies:
        said = text.tokenizer.decode(ids)
        found = encoded(text, user("the quick brown fox"), assistant(said), user("so?")).ids
        assert found[: len(prompt.ids) + len(ids)] == prompt.ids + ids


def test_transcripts_are_bounded(text: ModelText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_text, "MAX_TRANSCRIPTS", 3)
    for i in range(9):
        encoded(text, user(f"{i} the quick brown fox"))
    assert len(text._transcripts) == 3
    monkeypatch.setattr(model_text, "MAX_CHARACTERS", 10)
    encoded(text, user("again"))
    assert len(text._transcripts) == 1


def test_a_conversation_that_grows_takes_one_place(text: ModelText) -> None:
    turns = [user("the quick")]
    for i in range(5):
        prompt = encoded(text, *turns)
        text.add_reply(prompt, text.tokenizer.encode("brown", bos=False))
        turns += [assistant("brown"), user(f"fox {i}")]
    assert len(text._transcripts) == 1


def test_many_threads_encode_at_once(text: ModelText) -> None:
    def one(i: int) -> bool:
        turns = [user(f"{i % 4} the quick"), assistant("brown"), user(f"fox {i}")]
        prompt = encoded(text, *turns[: 1 + 2 * (i % 2)])
        text.add_reply(prompt, text.tokenizer.encode("brown", bos=False))
        return prompt.ids == encode_chat(text.tokenizer, text.template, turns[: 1 + 2 * (i % 2)])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(64)))


def test_what_makers_recommend_is_usual(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.3, "top_k": 5}')
    text = ModelText.open("tiny", tmp_path, context=128)
    assert text.usual == Sampling(temperature=0.3, top_k=5)


REFUSES = "{% if SOME | selectattr('role', 'eq', 'system') | list %}{{ raise_exception('no') }}{% endif %}"
SYSTEM_FIRST = REFUSES.replace("SOME", "messages[1:]") + TEMPLATE
WITHOUT_SYSTEM = REFUSES.replace("SOME", "messages") + TEMPLATE
FIRST = [system("a"), system("b", "developer"), user("hi"), assistant("yes"), system("c", "developer"), user("so?")]


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        (TEMPLATE, ["system", "user", "assistant", "system", "user"]),
        (SYSTEM_FIRST, ["system", "user", "assistant", "user", "user"]),
        (WITHOUT_SYSTEM, ["user", "assistant", "user", "user"]),
    ],
)
def test_instructions_stand_where_the_template_takes_them(text: ModelText, template: str, roles: list[str]) -> None:
    from partita.text.chat_template import ChatTemplate

    text = ModelText("tiny", text.tokenizer, ChatTemplate(template), context=128, usual=Sampling())
    found = normalized(FIRST, text)
    assert [message["role"] for message in found] == roles
    assert found[0]["content"].startswith("a\n\nb")
    assert "c" in [message["content"] for message in found]
    assert text.template is not None
    text.template.render(found)


def test_only_instructions_are_a_question(text: ModelText) -> None:
    assert normalized([system("a")], text) == [system("a")]
    assert normalized([system(""), user("x")], text) == [user("x")]


def test_merged_messages_of_a_speaker() -> None:
    assert merged([user("a"), user("b"), assistant("c"), user("d")]) == [user("a\n\nb"), assistant("c"), user("d")]
