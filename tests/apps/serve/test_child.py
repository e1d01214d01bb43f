"""The process that computes, with models: what a client gets is what the model says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import partita
from partita.checkpoint.open import open_checkpoint
from partita.engine.request import Constraint, Failed, Finished, Progress, Request
from partita.inference.sampling import Sampling
from partita_apps.serve.asked import Ask, Delta, Ended, Refused, Started, Waiting
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry
from partita_apps.serve.replies import reply
from partita_apps.serve.worker import Worker

from ...runtime.adapters.test_adapting import write
from .test_worker import heard, run, tokens

GREEDY = Sampling(temperature=0)


def expected(folder: Path, prompt: list[int], **options: Any) -> str:
    """The greedy reply of a model alone."""
    session = partita.load(folder, dtype="float32", **options).session()
    return "".join(piece.text for piece in session.generate(prompt, sampling=GREEDY, max_tokens=8))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_model_computes_in_its_process(backend: str, tiny_model: Path) -> None:
    async def test() -> None:
        of = Worker(Load(str(tiny_model), backend=backend, dtype="float32", context=128, kv="k8v8"))
        facts = await of.start()
        assert (facts.backend, facts.context, facts.trained_context, facts.dtype) == (backend, 128, 512, "float32")
        assert facts.kv == "k8v8"
        assert facts.bytes > tiny_model.joinpath("model.safetensors").stat().st_size // 2
        assert 0 < facts.row_bytes < facts.free
        assert of.progress == (2, 2)
        prompt = list(range(40, 60))
        first, *rest = await heard(of, Request(0, prompt, 12, GREEDY))
        assert isinstance(first, Progress)
        assert (first.done, first.total, first.reused, first.seconds > 0) == (20, 20, 0, True)
        assert tokens(rest) == tokens(await heard(of, Request(0, prompt, 12, GREEDY)))
        assert rest[-1] == Finished(1, "length")
        (failed,) = await heard(of, Request(0, list(range(40, 60)) * 10, 12))
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.field) == ("input", "context")
        *_, failed = await heard(of, Request(0, prompt, 12, constraint=Constraint("lark", "what is this")))
        assert isinstance(failed, Failed)
        assert failed.kind == "input"
        while of.beat is None or of.beat.rows:
            await asyncio.sleep(0.01)
        assert of.beat.generated == 24
        await of.stop()

    run(test())


def test_what_a_client_is_told_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    """From a name to text, through the registry: the greedy reply of the model alone, with an adapter and without."""
    adapter = write(tmp_path / "poet", open_checkpoint(tiny_model))
    prompt = list(range(40, 60))
    alone = [expected(tiny_model, prompt, backend="torch", adapter=adapter) for adapter in (None, adapter)]
    assert alone[0] != alone[1]

    async def said(models: Registry, name: str) -> str:
        ask = Ask(name, ids=prompt, max_tokens=8, sampling={"temperature": 0})
        events = [event async for event in reply(models, ask)]
        kinds = [type(event) for event in events if not isinstance(event, Waiting)]
        assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == (Started, {Delta}, Ended)
        return "".join(event.text for event in events if isinstance(event, Delta))

    async def test() -> None:
        names = Names([entry(str(tiny_model), adapters={"poet": str(adapter)})], None)
        async with Registry(names, Load("", backend="torch", dtype="float32")) as models:
            both = await asyncio.gather(said(models, "tiny"), said(models, "tiny:poet"))
            assert list(both) == alone
            assert models.describe("tiny:poet").context == 512
            assert len(models.workers()) == 1

    run(test())


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        ({"model": "/nowhere"}, "engine", "/nowhere does not exist"),
        ({"backend": "numpy", "context": 100_000}, "engine", "`context` 100000 is beyond the 512 tokens"),
        ({"backend": "numpy", "kv": "k9"}, "engine", "k9"),
        ({"backend": "numpy", "adapters": {"poet": "/nowhere"}}, "engine", "/nowhere"),
    ],
    ids=["path", "context", "kv", "adapter"],
)
def test_a_load_that_cannot_be(load: dict[str, Any], kind: str, message: str, tiny_model: Path) -> None:
    async def test() -> None:
        of = Worker(Load(**{"model": str(tiny_model), **load}))
        with pytest.raises(Refused) as error:
            await of.start()
        assert error.value.kind == kind
        assert message in error.value.message
        await of.stop()

    run(test())
