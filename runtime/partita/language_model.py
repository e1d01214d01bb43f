"""A model a person can talk to: decoder, tokenizer and template on one backend, and a session that keeps its cache.

This is where token ids meet text. How tokens are computed and cached is decided below, how text is shown above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from .adapters.attach import identity, with_adapter
from .adapters.read import Adapter, open_adapter
from .backend import Backend
from .brief import brief
from .cache import session_file
from .cache.budget import RESERVE, Choice, Layout, choose
from .cache.key_outliers import kv_warning
from .cache.kv_format import KVFormat
from .cache.prefix_cache import PrefixCache
from .cache.prefix_reuse import Reuse, default_bytes
from .cache.spec import DEFAULT_CHUNK, CacheSpec
from .cache.state import Cache
from .checkpoint.open import open_checkpoint
from .errors import CheckpointError, DataError
from .group import Group
from .inference.decode import DecodeOptions, OnProgress, decode
from .inference.runner import Generated, ModelRunner
from .inference.sampling import Sampler, Sampling, recommended
from .inference.speculative import Drafter
from .model.config import ModelConfig
from .model.decoder import Decoder
from .model.load import load_decoder, weight_bytes
from .model.notes import held_dense, notes
from .sources.resolve import DEFAULT_MODEL, Progress, full_name, resolve
from .text.chat_template import ChatTemplate, encode_chat
from .text.load import load_tokenizer
from .text.reply.parser import Part, ReplyFormat, ReplyParser, ToolCall
from .text.reply.until_stop import UntilStop
from .text.stop_strings import StopStrings
from .text.tokenizer import Tokenizer

Message = Mapping[str, Any]
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True)
class LanguageModel:
    """name: what the user asked for. path: the folder or file it was found at. fingerprint: its weights' identity.

    adapter: the identity of the adapter that its decoder has, "" for none. recommended: how its makers recommend to
    sample, None where they say nothing; nobody but a conversation takes that unasked. notes: lines for people,
    where its files say two things.
    """

    name: str
    path: Path
    ops: Backend
    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str
    adapter: str = ""
    recommended: Sampling | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        config = self.config
        size = f"{config.num_layers} layers of {config.hidden_size}, context {config.max_positions}"
        adapter = ", with an adapter" if self.adapter else ""
        where = f"{self.ops.name} on {self.ops.device}"
        return f"LanguageModel({brief(self.name)}, {config.model_type}, {size}, {where}{adapter})"

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @cached_property
    def template(self) -> ChatTemplate:
        """Raises TemplateError for a base model, which has none."""
        return ChatTemplate.of(self.tokenizer)

    def with_adapter(self, adapter: Adapter) -> LanguageModel:
        """This model, which has no adapter, with one; weights are shared.

        Raises CheckpointError where the adapter was made for another model, UnsupportedModel where it must be fused.
        """
        decoder = with_adapter(self.ops, self.decoder, adapter)
        return replace(self, decoder=decoder, adapter=identity(adapter))

    def encode(self, prompt: str | Sequence[Message], /, *, raw: bool = False, **variables: Any) -> list[int]:
        """Token ids of a conversation or of one user message, through the chat template; raw: of plain text.

        variables: what the template is given besides (`enable_thinking=False`, `tools=[…]`). Raises DataError for an
        empty prompt, TemplateError where the template cannot be used.
        """
        if isinstance(prompt, str) and not prompt.strip():
            raise DataError("the prompt is empty: give some text")
        if raw:
            if not isinstance(prompt, str):
                raise DataError("`raw` completes plain text; a list of messages needs the chat template", field="raw")
            if variables:
                given = ", ".join(variables)
                raise DataError(f"`raw` leaves the chat template out, which reads {given}", field="raw")
            return self.tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return encode_chat(self.tokenizer, self.template, messages, **variables)

    @cached_property
    def reply_format(self) -> ReplyFormat:
        """How thoughts and tool calls are marked in replies. Raises TemplateError for a template that is broken."""
        return ReplyFormat.of(self.tokenizer, self.template if self.tokenizer.chat_template is not None else None)

    def reply_to(self, prompt: Sequence[int], *, tools: Sequence[Any] | None = None, calls: int = 0) -> ReplyParser:
        """A parser of the reply to a prompt of `encode`, for `Session.generate`; keywords as in `ReplyParser`."""
        return ReplyParser(self.reply_format, self.tokenizer, prompt, tools=tools, calls=calls)

    def kv_format(self, name: str = "auto") -> KVFormat:
        """name: as in `KVFormat.parse`; "auto" is 16 bits, or 32 where everything is computed in float32."""
        return KVFormat.parse(name, dense_bits=32 if self.ops.decode_dtype == "float32" else 16)

    def cache_spec(
        self,
        *,
        context: int | str | None = None,
        sinks: int | None = None,
        kv: str = "auto",
        chunk: int = DEFAULT_CHUNK,
        slack: int = 0,
    ) -> CacheSpec:
        return self.choose_cache(context=context, sinks=sinks, kv=kv, chunk=chunk, slack=slack).spec

    def choose_cache(
        self,
        *,
        context: int | str | None = None,
        sinks: int | None = None,
        kv: str = "auto",
        chunk: int = DEFAULT_CHUNK,
        slack: int = 0,
        batch: int = 1,
    ) -> Choice:
        """The cache that will be allocated, and in words what `auto` decided. context: tokens, "auto" or None (all).

        Raises MemoryBudgetError for one that cannot fit, ContextError and DataError for one that cannot be.
        """
        free, dense = self.ops.memory().free, self.kv_format()
        layout: Layout = {"sinks": sinks, "chunk": chunk, "slack": slack}
        return choose(self.config, kv, dense, free, context=context, batch=batch, **layout)

    def kv_warning(self, spec: CacheSpec) -> str | None:
        """Why a cache's format is unsafe for this model's keys, in a line; None where nothing is known against it."""
        return kv_warning(self.ops, self.decoder, spec)

    @cached_property
    def prefixes(self) -> PrefixCache:
        """What this model's sessions have read, for others to begin from: 512 MiB at most, or 1/8 of free memory."""
        return PrefixCache(default_bytes(self.ops))

    def session(self, *, prefixes: PrefixCache | Literal["shared"] | None = "shared", **cache: Any) -> Session:
        """A conversation of its own; keywords as in `cache_spec`.

        prefixes: where beginnings of prompts are kept and found; the model's own by default, None for nowhere.
        """
        return Session(self, self.cache_spec(**cache), self.prefixes if prefixes == "shared" else prefixes)


@dataclass(frozen=True)
class Piece:
    """What became certain of a reply at one step: text that is said, a thought, or a call; and at the end why it ended.

    token: the step's, in the first of its pieces; None in those that follow it and in what is released at the end.
    finish_reason: "stop" or "length" in the last piece.
    """

    text: str
    token: Generated | None = None
    finish_reason: str | None = None
    thought: str = ""
    call: ToolCall | None = None


class Session:
    """One row of cache and the tokens it holds. A new prompt that begins like them is fed from where they part."""

    def __init__(self, model: LanguageModel, spec: CacheSpec, prefixes: PrefixCache | None = None):
        self.model = model
        self._reuse = Reuse(prefixes, model.fingerprint + model.adapter, model.tokenizer.stop_ids)
        self.cache = Cache(model.ops, spec)
        self.tokens: list[int] = []
        """Ids whose keys and values are in the cache, oldest first."""
        self.reused = 0
        """How many tokens of the last prompt were in the cache already."""

    def __repr__(self) -> str:
        return f"Session({self.model!r}, {len(self.tokens)} tokens)"

    @property
    def runner(self) -> ModelRunner:
        """What feeds the cache. Who uses it adds to `tokens` what it has fed."""
        return ModelRunner(self.model.ops, self.model.decoder, self.cache)

    @property
    def forgotten(self) -> int:
        """Tokens that went through the ring and are no longer seen by full-attention layers."""
        slots = self.cache.slots()
        return len(self.tokens) - slots.sinks - slots.window

    def reset(self) -> None:
        self.cache.reset()
        self.tokens = []

    def save(self, path: Path | str, extra: Mapping[str, Any] | None = None) -> None:
        """Write the tokens and their keys and values to a file, whole or not at all, and `extra` (JSON) beside them.

        Raises DataError where that cannot be done.
        """
        self._reset_if_interrupted()
        session_file.save(Path(path), self.cache, self.tokens, self._identity, extra)

    def restore(self, path: Path | str) -> dict[str, Any]:
        """Go on from a file that `save` wrote, on any backend; gives back its `extra`.

        Raises ContextError for another model or other cache options, CheckpointError for a damaged file; the session
        is then as it was.
        """
        saved = session_file.load(Path(path), self.cache, self._identity)
        if any(token >= self.model.config.vocab_size for token in saved.tokens):
            raise CheckpointError(f"{Path(path).name}: it has tokens that the model lacks; the file is damaged")
        self.cache.restore(saved.snapshot)
        self.tokens = saved.tokens
        return saved.extra

    @property
    def _identity(self) -> session_file.Identity:
        return session_file.Identity(self.model.name, self.model.fingerprint, self.model.adapter)

    def generate(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        alternatives: int = 0,
        continues: bool = False,
        draft: Drafter | None = None,
        reply: ReplyParser | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Piece]:
        """Pieces of a reply. Closing the iterator stops it between two tokens; what was fed stays in the cache.

        stop: strings that end what is said; in thoughts and calls they are text. continues: the text goes on in the
        middle of a sentence (plain completion), so a leading space is part of it. reply: separates thoughts and tool
        calls (`LanguageModel.reply_to`); without it everything is text.
        draft: proposes tokens, so that several may come of one pass; they are the same tokens without it.
        Raising from on_progress stops a prompt between two chunks; the chunks that were fed stay in the cache.
        """
        tokenizer = self.model.tokenizer
        options = DecodeOptions(max_tokens, tokenizer.stop_ids, alternatives)
        self.model.decoder.check(prompt)
        parts = UntilStop(reply or ReplyParser(ReplyFormat(), tokenizer, continues=continues), StopStrings(stop))
        tokens = self._decode(prompt, sampling or Sampling(), options, draft, on_progress)
        for count, generated in enumerate(tokens):
            if generated.id in tokenizer.stop_ids:
                yield from _pieces(parts.finish(), generated, "stop")
                return
            found = parts.push(generated.id)
            yield from _pieces(found, generated, "stop" if parts.stopped else None)
            if parts.stopped:
                return
            if not count:  # behind the first token, which need not wait for a copy of the cache
                self._reuse.read(self.cache, self.tokens, max_tokens)
        rest = parts.finish()
        yield from _pieces(rest, None, "stop" if parts.stopped else "length")

    def _decode(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        options: DecodeOptions,
        draft: Drafter | None,
        on_progress: OnProgress | None,
    ) -> Iterator[Generated]:
        """Tokens behind a prompt, of which the cache may hold a beginning."""
        model = self.model
        sampler = Sampler(model.ops, sampling, model.config.vocab_size, prompt)
        new = self.align(prompt)
        if draft is not None:
            draft.begin(prompt)
        pauses = [pause - self.reused for pause in self._reuse.pauses]
        return decode(
            self.runner,
            new,
            sampler,
            options,
            drafter=draft,
            pauses=pauses,
            on_progress=on_progress,
            on_fed=self._fed,
        )

    def align(self, prompt: Sequence[int]) -> list[int]:
        """Make the cache hold a beginning of prompt, and return the rest (never nothing: logits follow a token)."""
        if not prompt:
            raise DataError("the prompt is empty: give at least one token")
        self._reset_if_interrupted()
        self.reused = self._reuse.align(self.cache, self.tokens, prompt)
        self.tokens = list(prompt[: self.reused])
        return list(prompt[self.reused :])

    def _reset_if_interrupted(self) -> None:
        """In the middle of a step, so that what the cache holds is unknown."""
        if self.cache.offsets[0] != len(self.tokens):
            self.reset()

    def _fed(self, ids: Sequence[int]) -> None:
        self.tokens.extend(ids)
        self._reuse.fed(self.cache, self.tokens)


def _pieces(parts: Sequence[Part], token: Generated | None, finish_reason: str | None) -> Iterator[Piece]:
    """A step's parts as pieces, at least one."""
    parts = parts or [Part("speech", "")]
    for i, part in enumerate(parts):
        reason = finish_reason if i == len(parts) - 1 else None
        thinks = part.kind == "thought"
        yield Piece("" if thinks else part.text, None if i else token, reason, part.text if thinks else "", part.call)


def open_backend(
    name: str = "auto",
    *,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    needs: Callable[[Backend], int] | None = None,
    on_fallback: Callable[[str], None] | None = None,
) -> Backend:
    """A backend by name; keywords as in `partita_backends.load`. Raises BackendUnavailable, DataError."""
    import partita_backends  # only this function and the two below import it

    return partita_backends.load(
        name, device=device, dtype=dtype, threads=threads, needs=needs, on_fallback=on_fallback
    )


def check_backend(name: str = "auto", *, device: str | None = None, threads: int | None = None) -> None:
    """Check the options of `open_backend` without opening one. Raises BackendUnavailable, DataError."""
    import partita_backends

    partita_backends.check_options(name, device=device, threads=threads)


def open_group(ops: Backend) -> Group:
    """The processes that were started with this one, as `partita_backends.group`. Raises BackendUnavailable."""
    import partita_backends

    return partita_backends.group(ops)


def load(
    name: str | Path | None = None,
    *,
    backend: str | Backend = "auto",
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    on_fallback: Callable[[str], None] | None = None,
) -> LanguageModel:
    """A model by name: a folder, a `.gguf` file, `hf:owner/name`, `pypi:distribution==version`, or the default one; of
    a model that is on this machine, a short name that is no other's.

    backend: "auto", "mlx", "torch", "numpy", or an instance. adapter: the folder of one, PEFT's or mlx-lm's.
    on_fallback: is given one line where "auto" passed over something that is installed and fails, or a GPU without room
    for the model (`print` shows it). Everything that can go wrong is a `PartitaError`.
    """
    found = None if adapter is None else open_adapter(adapter)
    path = resolve(None if name is None else str(name), progress=progress)
    checkpoint = open_checkpoint(path)
    if isinstance(backend, str):
        backend = open_backend(
            backend,
            device=device,
            dtype=dtype,
            threads=threads,
            needs=lambda ops: weight_bytes(ops, checkpoint) + RESERVE,
            on_fallback=on_fallback,
        )
    tokenizer = load_tokenizer(checkpoint)  # first: it may be refused, and weights take long
    decoder = load_decoder(backend, checkpoint, on_layer=on_layer)
    full = full_name(None if name is None else str(name))
    called = path.stem if full == DEFAULT_MODEL else full
    usual = recommended(checkpoint.generation_config)
    mark, remarks = checkpoint.fingerprint(), notes(checkpoint) + held_dense(backend, checkpoint)
    model = LanguageModel(called, path, backend, decoder, tokenizer, mark, recommended=usual, notes=remarks)
    return model if found is None else model.with_adapter(found)
