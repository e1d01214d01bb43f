"""Fine-tuning beside models: a run from data to an adapter that answers, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import partita
from partita.inference.sampling import Sampling
from partita_apps.serve.app.tuning.log import Log
from partita_apps.serve.app.tuning.store import Store, checked_name, free_name, thinned
from partita_apps.serve.app.tuning.tunings import Tunings, defaults
from partita_apps.serve.asked import Ask, Delta, Ended, Refused
from partita_apps.serve.registry import Registry
from partita_apps.serve.replies import reply

from .tuned import QUICK, at_step, chats, followed, losses, run, tuning, uploaded

GIB = 1 << 30


def children(word: str = "tuning.child") -> list[int]:
    """Processes of runs that this one has."""
    found: list[int] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if word in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


async def said(models: Registry, name: str, prompt: list[int]) -> str:
    ask = Ask(name, ids=prompt, max_tokens=8, sampling={"temperature": 0})
    events = [event async for event in reply(models, ask)]
    assert isinstance(events[-1], Ended)
    return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_run_from_data_to_an_adapter_that_answers(backend: str, tiny_model: Path, tmp_path: Path) -> None:
    """While the model is loaded and stays so, and again after the server was started again."""
    folder, changes, prompt = tmp_path / "tuning", list[str](), list(range(40, 60))

    async def begin() -> tuple[str, str]:
        async with tuning(folder, tiny_model, backend, changes.append) as (tunings, models):
            before = await said(models, "tiny", prompt)
            pid = models.workers()["tiny"].pid
            data = await uploaded(tunings)
            assert (data.kind, data.rows) == ("chat", 12)
            assert data.examples[0].turns[1] == ("assistant", "the lazy dog jumps over the fox")
            record = tunings.start("", "tiny", data.id, {**QUICK, "steps": 6, "sample": ["the fox number 3"]})
            assert record.name == "letters"
            await check_events(tunings)
            assert (record.state, record.step, record.used) == ("done", 6, False)
            assert await tunings.use(record.id) == "tiny:letters"
            assert models.names() == ["tiny", "tiny:letters"]
            after = await said(models, "tiny:letters", prompt)
            assert (await said(models, "tiny", prompt), models.workers()["tiny"].pid) == (before, pid)
            assert {data.id, record.id} <= set(changes)
            assert not children()
            return record.id, after

    async def check_events(tunings: Tunings) -> None:
        events = await followed(tunings)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        steps = [event.data for event in events if event.kind == "step"]
        assert [step["step"] for step in steps] == list(range(1, 7))
        assert all(step["tokens_per_second"] > 0 and step["memory"] > 0 for step in steps)
        assert steps[-1]["left"] == 0
        assert steps[-1]["loss"] < steps[0]["loss"]
        (first, last) = [event.data["samples"][0] for event in events if event.kind == "samples"]
        assert (first.prompt, first.after, last.before) == ("the fox number 3", None, first.before)
        assert last.after != last.before
        assert events[-1] == (len(events), "end", {"state": "done", "message": None, "field": None})
        kinds = {event.kind for event in events}
        assert {"phase", "ready", "valid", "saved"} <= kinds

    async def again(id: str) -> str:
        async with tuning(folder, tiny_model, backend) as (tunings, models):
            assert models.names() == ["tiny", "tiny:letters"]
            assert models.describe("tiny:letters").base == "tiny"
            found = await said(models, "tiny:letters", prompt)
            await tunings.delete(id)
            assert models.names() == ["tiny"]
            with pytest.raises(Refused, match="unknown model"):
                await said(models, "tiny:letters", prompt)
            return found

    id, found = run(begin())
    adapter = folder / id / "out"
    session = partita.load(tiny_model, backend=backend, dtype="float32", adapter=adapter).session()
    alone = "".join(each.text for each in session.generate(prompt, sampling=Sampling(temperature=0), max_tokens=8))
    assert found == alone
    assert run(again(id)) == alone
    assert not adapter.exists()


def test_stopped_killed_and_resumed_a_run_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """To the last bit, as if nothing had happened; a process that was killed is told of."""
    chosen = {**QUICK, "steps": 12}

    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            whole = tunings.start("whole", "tiny", data.id, chosen)
            await followed(tunings)
            parts = tunings.start("parts", "tiny", data.id, chosen)
            await followed(tunings, at_step(3))
            tunings.stop(parts.id)
            await followed(tunings)
            assert (parts.state, parts.message, tunings.store.has_adapter(parts)) == ("stopped", None, True)
            assert 3 <= parts.step < 12
            stopped_at = parts.step
            parts = tunings.resume(parts.id)
            await followed(tunings, at_step(stopped_at + 1))
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            await followed(tunings)
            assert parts.state == "interrupted"
            assert parts.message is not None
            assert "signal 9" in parts.message
            await tunings.use(parts.id)  # what it learnt before it was stopped
            parts = tunings.resume(parts.id)
            events = await followed(tunings)
            assert events[-1].data["state"] == parts.state == "done"
            assert losses(tunings, parts.id) == losses(tunings, whole.id)
            assert parts.samples == whole.samples
            with pytest.raises(Refused, match="is done"):
                tunings.resume(parts.id)

    run(test())


def test_a_run_that_ends_before_its_first_step_begins_again(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            record = tunings.start("", "tiny", data.id, {**QUICK, "steps": 2})
            tunings.stop(record.id)
            await followed(tunings)
            assert (record.state, record.step, tunings.store.rows(record)) == ("stopped", 0, [])
            with pytest.raises(Refused, match="has left no adapter yet"):
                await tunings.use(record.id)
            record = tunings.resume(record.id)
            await followed(tunings)
            assert (record.state, record.step) == ("done", 2)

    run(test())


def test_one_run_at_a_time_and_what_cannot_be_done_to_it(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, models):
            data = await uploaded(tunings)
            record = tunings.start("a", "tiny", data.id, {**QUICK, "steps": 500})
            for act, message in [
                (lambda: tunings.start("b", "tiny", data.id, {}), "one at a time"),
                (lambda: tunings.resume(record.id), "one at a time"),
            ]:
                with pytest.raises(Refused, match=message) as error:
                    act()
                assert error.value.kind == "conflict"
            with pytest.raises(Refused, match="stop it first"):
                await tunings.delete(record.id)
            async with tuning(tmp_path / "tuning", tiny_model) as (other, _):
                assert [each.state for each in other.records()] == ["running"]  # it goes on, elsewhere
                with pytest.raises(Refused, match="another server fine-tunes"):
                    other.start("b", "tiny", data.id, {})
            tunings.drop_upload(data.id)  # the run has its own
            await followed(tunings, at_step(2))
            assert models.guests.names == ["the fine-tuning run a"]

        assert record.state == "stopped"  # the server ended, and the run was saved
        assert not children()
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            (found,) = tunings.records()
            assert (found.state, found.step) == ("stopped", record.step)

    run(test())


def test_a_run_whose_server_ended_without_a_word_is_interrupted(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            record = tunings.store.begin("a", "tiny", tiny_model.absolute(), data, {**QUICK, "steps": 2})
            assert record.state == "running"
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            (found,) = tunings.records()
            assert (found.state, found.message) == ("interrupted", "the server ended during the run")
            tunings.resume(found.id)
            await followed(tunings)
            assert tunings.find(found.id).state == "done"

    run(test())


def test_memory_is_made_of_idle_models_and_refused_beside_used_ones(tiny_model: Path, tmp_path: Path) -> None:
    """What is free is played; what is needed is the run's own estimate."""
    free = [64 * GIB]

    async def test() -> None:
        def available() -> int:
            return free[0] if models.workers() else 64 * GIB

        async with tuning(tmp_path / "tuning", tiny_model, free=available) as (tunings, found):
            nonlocal models
            models, data = found, await uploaded(found_tunings := tunings)
            prediction = (await tunings.predict("tiny", data.id, QUICK))["prediction"]
            assert 0 < prediction.weights < prediction.least < prediction.needs < GIB
            free[0] = GIB // 8
            async with models.use("tiny"):
                free[0] = GIB // 8
                record = found_tunings.start("used", "tiny", data.id, {**QUICK, "steps": 1})
                await followed(tunings)
                assert (record.state, record.field) == ("failed", None)
                message = record.message or ""
                assert "training needs" in message
                assert "128 MiB are free" in message or "are free" in message
                assert "tiny stay loaded" in message
                assert models.describe("tiny").state == "loaded"
            record = found_tunings.resume(record.id)
            await followed(tunings)
            assert record.state == "done"
            assert models.describe("tiny").state == "unloaded"

    models: Any = None
    run(test())


def test_what_a_run_was_promised_is_no_other_models(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model, patience=0.0, free=lambda: GIB) as (tunings, models):
            models.guests.add("the fine-tuning run a", lambda: GIB)
            with pytest.raises(Refused, match="free beside the fine-tuning run a") as error:
                async with models.use("tiny"):
                    pass
            assert error.value.kind == "memory"
            models.guests.drop("the fine-tuning run a")
            async with models.use("tiny"):
                pass
            assert tunings.live is None

    run(test())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 1}\n', 'a.jsonl line 3: "text" is a number: it must be a string'),
        ("a.jsonl", b'{"text": "a"', "a.jsonl line 1: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl line 1: not UTF-8"),
        ("a.jsonl", b'{"other": 1}', "a.jsonl line 1: none of the known forms"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', "line 1: .*nothing to train on"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: "),
        ("a.jsonl", b"\n \n", "a.jsonl holds no records"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8"),
        ("a.parquet", b"PAR1", "must be a .jsonl or a .txt file"),
        ("a", b"a", "must be a .jsonl or a .txt file"),
        ("a.jsonl", b" " * (16 << 20) + b" ", "larger than 16 MiB"),
    ],
)
def test_data_that_no_run_could_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    async def test() -> None:
        tunings: Any = Tunings(tmp_path / "tuning", None)  # pyright: ignore[reportArgumentType]
        with pytest.raises(Refused, match=message) as error:
            await tunings.upload(name, content)
        assert str(tmp_path) not in error.value.message
        assert tunings.store.uploads() == []
        assert not list((tmp_path / "tuning").glob("data/*"))

    run(test())


def test_a_text_is_data_too(tmp_path: Path) -> None:
    async def test() -> None:
        tunings: Any = Tunings(tmp_path / "tuning", None)  # pyright: ignore[reportArgumentType]
        found = await tunings.upload("Night.TXT", "\ufeffone\ntwo \x1b[31m three\n".encode())
        assert (found.kind, found.rows, found.name) == ("text", 2, "Night.TXT")
        assert "\x1b" not in found.examples[0].turns[0][1]

    run(test())


def test_what_is_kept_is_the_owners_alone(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            tunings.start("", "tiny", data.id, {**QUICK, "steps": 1})
            await followed(tunings)

    run(test())
    everything = [tmp_path / "tuning", *(tmp_path / "tuning").rglob("*")]
    assert {path.name for path in everything} >= {"record.json", "data.jsonl", "adapter_model.safetensors", "run.json"}
    for path in everything:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize("id", ["", ".", "..", "../data", "data", "/etc", "0" * 15, "0" * 16, "0" * 17, "\0"])
def test_ids_are_looked_up_and_are_no_paths(id: str, tmp_path: Path) -> None:
    async def test() -> None:
        tunings: Any = Tunings(tmp_path / "tuning", None)  # pyright: ignore[reportArgumentType]
        await tunings.upload("a.jsonl", chats(1))
        secret = tmp_path / "tuning" / "about.json"
        secret.write_bytes((tunings.store.folder / "data" / tunings.store.uploads()[0].id / "about.json").read_bytes())
        for act in (tunings.find, tunings.stop, tunings.resume, tunings.drop_upload):
            with pytest.raises(Refused) as error:
                act(id)
            assert error.value.kind == "not_found"
        for act in (tunings.delete, tunings.use):
            with pytest.raises(Refused, match="not here any more"):
                await act(id)
        assert len(tunings.store.uploads()) == 1

    run(test())


@pytest.mark.parametrize(
    ("name", "chosen", "message", "field"),
    [
        ("a/b", {}, "`name` must be", "name"),
        ("..", {}, "`name` must be", "name"),
        ("a:b", {}, "`name` must be", "name"),
        ("x" * 49, {}, "`name` must be", "name"),
        ("", {"steps": 3, "epochs": 1.0}, "exclude each other", "epochs"),
        ("", {"max_length": 1}, "`max_length` must be >= 2", "max_length"),
    ],
)
def test_a_start_that_cannot_be(
    name: str, chosen: dict[str, Any], message: str, field: str, tiny_model: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            with pytest.raises(Refused, match=message) as error:
                tunings.start(name, "tiny", data.id, chosen)
            assert error.value.field == field
            assert tunings.records() == []
            with pytest.raises(Refused, match="unknown model"):
                tunings.start("", "/etc/passwd", data.id, {})

    run(test())


def test_what_fails_in_the_process_is_told_with_its_field(tiny_model: Path, tmp_path: Path) -> None:
    """The folder that is left can be gone on with, once what was wrong is right."""

    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            with pytest.raises(Refused, match="beyond the 512 tokens") as error:
                await tunings.predict("tiny", data.id, {"max_length": 4096})
            assert error.value.field == "max_length"
            record = tunings.start("", "tiny", data.id, {"max_length": 4096})
            await followed(tunings)
            assert (record.state, record.field) == ("failed", "max_length")
            assert "beyond the 512 tokens" in (record.message or "")
            await tunings.delete(record.id)
            assert tunings.records() == []
        async with tuning(tmp_path / "tuning", tiny_model, "numpy") as (tunings, _):
            with pytest.raises(Refused, match="the numpy backend cannot train"):
                await tunings.predict("tiny", data.id, {})

    run(test())


def test_only_the_last_prediction_is_made(tiny_model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tuning(tmp_path / "tuning", tiny_model) as (tunings, _):
            data = await uploaded(tunings)
            first = asyncio.create_task(tunings.predict("tiny", data.id, {"rank": 1}))
            await asyncio.sleep(0)
            second = await tunings.predict("tiny", data.id, {"rank": 2})
            with pytest.raises(Refused, match="another prediction"):
                await first
            assert second["prediction"].data["train"]["records"] == 11
            assert not children()

    run(test())


# Parts


def test_events_are_numbered_and_the_oldest_are_forgotten() -> None:
    async def test() -> None:
        log = Log(most=3)
        for i in range(5):
            log.add("step", i)
        assert [event.number for event in log.since(2) or []] == [3, 4, 5]
        assert (log.since(5), log.since(9)) == ([], [])
        assert (log.since(1), log.since(0)) == (None, None)
        waiting = asyncio.create_task(log.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        log.close()
        await waiting
        await log.wait()

    run(test())


def test_names_of_adapters() -> None:
    assert free_name("My letters (2).jsonl", []) == "My-letters-2"
    assert free_name("a.jsonl", ["a", "a-2"]) == "a-3"
    assert free_name("ü.txt", []) == "run"
    assert len(free_name("x" * 200, [])) == 40
    with pytest.raises(Refused, match="is taken"):
        checked_name("a", ["a"])


def test_a_curve_keeps_its_end_and_its_mean() -> None:
    points = [(i, float(i)) for i in range(1, 101)]
    found = thinned(points, 30)
    assert len(found) == 25
    assert found[0] == (4, 2.5)
    assert found[-1] == (100, 98.5)
    assert thinned(points[:30], 30) == points[:30]


def test_defaults_are_those_of_the_command() -> None:
    assert defaults() == {
        "rank": 16,
        "steps": None,
        "epochs": None,
        "learning_rate": None,
        "max_length": None,
        "batch_size": 2,
        "accumulate": 1,
        "sample": (),
    }


def test_records_that_are_damaged_are_left_out(tmp_path: Path) -> None:
    for id, text in (("a" * 16, "{"), ("b" * 16, '{"id": 5}'), ("c" * 16, "")):
        (tmp_path / id).mkdir()
        (tmp_path / id / "record.json").write_text(text)
    assert Store(tmp_path).records() == []
    assert Store(tmp_path / "nothing").uploads() == []
