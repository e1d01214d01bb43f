"""The functions at the top of the package: short forms for everyday use of what the rooms do.

Nothing is decided here that a class below does not decide; whoever needs more control takes `LanguageModel` and
`Session`. The converter is reached when `convert` is called.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from .cache.state import Cache
from .checkpoint.base import Checkpoint
from .errors import DataError
from .files.paths import own
from .finetuning.observer import Observer
from .finetuning.outcome import TrainingReport
from .finetuning.run import check_place
from .finetuning.run import run as run_finetuning
from .finetuning.settings import MoreSettings, Settings
from .inference.sampling import Sampling
from .language_model import DEFAULT_MAX_TOKENS, LanguageModel, Message, Piece, Session
from .sources.resolve import DEFAULT_MODEL

if TYPE_CHECKING:
    from partita_convert.report import Report


def generate(
    model: LanguageModel,
    prompt: str | Sequence[Message],
    *,
    raw: bool = False,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    context: int | str | None = None,
    sinks: int | None = None,
    kv: str = "auto",
    alternatives: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """A reply to one prompt, piece by piece, in a fresh session; without settings, the most probable token each time.

    Of each piece, `text` is what the model says, `thought` what it thinks, `call` a tool that it calls; the last one
    has a `finish_reason`: "stop" or "length". Closing the iterator ends the reply.

    prompt: a user's message, or chat messages (`{"role": "user", "content": "…"}`); raw: text to complete, without the
    chat template, all of the reply in `text`. max_tokens: new tokens at most. temperature, top_k, top_p, min_p,
    repetition_penalty, seed: as in `Sampling`, where `sampling` has the rest. stop: text, or several, that end the
    reply and are not part of it. context: tokens that the cache holds, "auto" for what memory allows, None for the
    model's own; sinks: tokens at the beginning that are never dropped; kv: bits of cached keys and values, such as
    "k8v4". alternatives: how many probable tokens `piece.token.alternatives` shows. on_progress(done, total): tokens of
    the prompt that are read.

    Raises DataError for an empty prompt or a setting that makes no sense, TemplateError for a model without a usable
    chat template, MemoryBudgetError for a cache without room; at the call, before the first piece.
    """
    rules = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    how = _sampling(sampling or Sampling(), temperature=temperature, seed=seed, **rules)
    ids = model.encode(prompt, raw=raw)
    reply = None if raw else model.reply_to(ids)
    session = model.session(context=context, sinks=sinks, kv=kv)
    return session.generate(
        ids,
        sampling=how,
        reply=reply,
        max_tokens=max_tokens,
        stop=_texts(stop),
        alternatives=alternatives,
        on_progress=on_progress,
    )


def chat(
    model: LanguageModel,
    messages: str | Sequence[Message],
    *,
    session: Session | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """The next reply of a conversation, piece by piece, sampled as the model's makers recommend.

    Give the whole conversation each time, the reply appended to it: what the session's cache holds of it already is
    not read again. Pieces as in `generate`.

    messages: in OpenAI's form, with `tool_calls` and the role "tool" where tools are used; text alone is one message.
    session: `model.session(context=…, kv=…)`, whose cache the conversation keeps; None takes a fresh one. tools: what
    the model may call, as OpenAI describes functions; a call comes as one piece. variables: what the chat template is
    told besides, as `{"enable_thinking": False}`. Other keywords as in `generate`; where they are left out, `sampling`
    counts, then `model.recommended`, then the most probable token.

    Raises what `generate` raises.
    """
    rules = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    how = _sampling(sampling or model.recommended or Sampling(), temperature=temperature, seed=seed, **rules)
    given: dict[str, Any] = dict(variables or {}) if tools is None else {**(variables or {}), "tools": list(tools)}
    ids = model.encode(messages, **given)
    calls = 0 if isinstance(messages, str) else sum(len(message.get("tool_calls") or ()) for message in messages)
    reply = model.reply_to(ids, tools=tools, calls=calls)
    session = session or model.session()
    return session.generate(
        ids, sampling=how, reply=reply, max_tokens=max_tokens, stop=_texts(stop), on_progress=on_progress
    )


def _sampling(base: Sampling, **chosen: float | None) -> Sampling:
    """The base with what was chosen in its place."""
    return replace(base, **{name: value for name, value in chosen.items() if value is not None})


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    """One text, or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def logits(model: LanguageModel, ids: Sequence[int]) -> np.ndarray:
    """The model's scores of the next token after each of the ids: float32 (T, V), T = len(ids), V = vocabulary size.

    ids: of `model.encode(messages)` or `model.encode(text, raw=True)`. Row i has seen ids[: i + 1]. Raises DataError
    for no ids or ids that the model lacks, ContextError and MemoryBudgetError for more than it can hold.
    """
    if not len(ids):
        raise DataError("there are no tokens: give at least one")
    model.decoder.check(ids)
    cache = Cache(model.ops, model.cache_spec(context=len(ids), sinks=0))
    tokens, chunk = np.asarray(ids, np.int32)[None], cache.spec.chunk  # 1 T
    starts = range(0, tokens.shape[1], chunk)
    fed = (model.ops.array(tokens[:, start : start + chunk]) for start in starts)
    rows = [model.ops.to_numpy(model.decoder(model.ops, part, cache, every=True)[0]) for part in fed]
    return np.concatenate(rows)  # T V


def finetune(
    model: str | Path | None,
    data: str | Path | Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    method: Literal["lora", "dora", "full"] = "lora",
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    layers: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 2,
    accumulate: int = 1,
    learning_rate: float | None = None,
    max_length: int | None = None,
    valid_fraction: float = 0.05,
    template_var: str | Sequence[str] = (),
    seed: int = 0,
    sample: str | Sequence[str] = (),
    sample_tokens: int | None = None,
    backend: str = "auto",
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    observer: Observer | None = None,
    **more: Unpack[MoreSettings],
) -> TrainingReport:
    """Train a model on data and leave an adapter, or a model, in a folder; returns what `partita finetune` reports.

    model: as in `load`. data: a .jsonl or .txt file, a folder with train.jsonl, `hf:owner/name`, or a list of records:
    `{"messages": […]}`, `{"prompt": "…", "completion": "…"}` or `{"text": "…"}`. Of a conversation, the assistant's
    turns are learnt. out: a new folder for the run; None makes one among the system's temporary files. resume: go on
    with the run in `out`, with the same arguments.

    What is trained:

    - method: "lora", "dora" (LoRA and row lengths) or "full" (every weight)
    - rank, dropout: of the adapters; alpha: they are scaled by alpha / rank, None is twice the rank
    - targets: projections by name, as `["q_proj", "v_proj"]`; layers: the last so many alone, None is all
    - rslora = False: scale by alpha / sqrt(rank), for high ranks
    - from_scratch = None: a config.json whose shape random weights get, with method "full"

    Data:

    - max_length: tokens of a document, longer ones are cut; None is 1,024, or what the model was trained on if less
    - valid_fraction: share held out where the data has no validation file
    - template_var: what the chat template is told besides, as "enable_thinking=false"
    - packing = True: several documents in a row, none of which sees another
    - control_tokens = False: read `<|im_start|>` and its kind in plain text as tokens
    - seed: of data order, initial values and dropout

    Steps:

    - steps: updates; epochs: passes over the data in their place; without both 3 epochs, at most 1,000 steps
    - batch_size: rows computed at once; accumulate: batches that make one update
    - learning_rate: the largest; None is 2e-4 for adapters, 2e-5 for every weight, 1e-3 from scratch
    - schedule = "cosine": of the rate after the warm-up, or "linear", "constant"
    - warmup = None: steps in which the rate rises; None is 5 % of them, at most 100
    - weight_decay = 0.01: AdamW's, of matrices only
    - clip = 1.0: largest norm of the gradients; 0 is no limit
    - grad_checkpoint = None: compute activations twice in place of keeping them; None is where memory needs it

    On the way:

    - sample: prompts for `report.samples`, before and after
    - sample_tokens: of each sample; None is 64 where there are prompts, else 0. Without prompts, texts of the data are
      continued
    - eval_every = None: steps between evaluations, None is a tenth of all; eval_batches = 50: the most of one
    - save_every = 50: steps between checkpoints, of which two are kept
    - patience = None: stop after so many evaluations without a lower loss, and keep the best
    - observer: hears of steps and evaluations while they happen
    - backend, device, dtype, threads: as in `load`

    Raises DataError, SourceError, MemoryBudgetError before the first step, TrainingError for a loss that is not
    finite, TypeError for a setting that does not exist. A KeyboardInterrupt ends the run at once: what the last
    checkpoint has is kept, for `resume`.
    """
    from partita_backends import together

    _refuse_unknown(more)
    prompts = _texts(sample)
    is_source = isinstance(data, str | Path)
    settings = Settings(
        str(model or DEFAULT_MODEL),
        str(data) if is_source else "",
        method=method,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        targets=",".join(_texts(targets)),
        layers=layers,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        max_length=max_length,
        valid_fraction=valid_fraction,
        template_var=_texts(template_var),
        seed=seed,
        sample=prompts,
        sample_tokens=(Settings.sample_tokens if prompts else 0) if sample_tokens is None else sample_tokens,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        **more,
    )
    place = Path(tempfile.mkdtemp(prefix="partita-")) if out is None else own(out)
    if together.first():
        check_place(place, resume)
    records, first = None if is_source else data, together.first()
    trained = run_finetuning(
        settings, place, observer, write_folder=_write_folder, records=records, resume=resume, first=first
    )
    return TrainingReport.of(*trained)


def _refuse_unknown(more: Mapping[str, object]) -> None:
    """TypeError for a keyword that is no setting, with the one that is most like it."""
    for name in more.keys() - MoreSettings.__annotations__.keys():
        near = get_close_matches(name, [*Settings.__dataclass_fields__, "out", "resume", "observer"], 1)
        hint = f"did you mean {near[0]}?" if near else "help(partita.finetune) lists them"
        raise TypeError(f"finetune has no setting {name}: {hint}")


def _write_folder(checkpoint: Checkpoint, place: Path) -> None:
    from partita_convert.write_folder import write_huggingface

    write_huggingface(checkpoint, place)


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    to: Literal["mlx", "huggingface", "gguf", "compressed-tensors"] | None = None,
    quantize: str | int | None = None,
    dtype: str | None = None,
    exact: bool = False,
    adapter: str | Path | None = None,
    adapter_loss: Literal["raise", "keep", "refuse"] = "raise",
    calibration: str | Path | None = None,
    imatrix: str | Path | None = None,
    save_imatrix: str | Path | None = None,
    check: str | Path | None = None,
    against: str | Path | None = None,
    allow_pickle: bool = False,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
) -> Report:
    """Write a model in another layout, and say what it cost; what `partita convert` does.

    The report has `bits_per_weight`, `nbytes`, and the error of every tensor in `tensors`; its `as_json()` is what
    `partita convert --json` prints. A folder's README.md says what it came from and how.

    source: a model as in `load`, or the folder of an adapter. dest: a new folder, or a new file that ends in .gguf.

    - to: "mlx" (for partita and mlx-lm), "huggingface" (dense, for transformers), "gguf" (for llama.cpp) or
      "compressed-tensors" (4 bits, for vLLM and SGLang); None is gguf where dest ends so, else mlx. Of an adapter:
      "mlx" is mlx-lm's layout, "huggingface" PEFT's
    - quantize: bits, as 4 or "4:32" (in groups of 32), small floats as "nvfp4", a mixture as "mixed_4_6",
      "measured:4.5" (bits a weight, spent where they help most), or a type of GGUF; None keeps what is stored
    - dtype: of weights that stay dense: "float32", "float16" or "bfloat16"
    - exact: keep float32 scales of a GGUF file's K-quants
    - adapter: a folder, PEFT's or mlx-lm's, to fuse into the weights; adapter_loss: where few bits would lose its
      change, "raise" the bits, "keep" the loss, or "refuse"
    - calibration: a text file like the model's later work, to weigh errors by; None is a short text of ours, "none"
      does not run the model
    - imatrix: of a GGUF file, a file of llama.cpp's llama-imatrix to weigh errors by instead; save_imatrix: where to
      keep what they are weighed by, in that form
    - check: a text file; `report.check` has the perplexity of source and result on it, and KL between them
    - against: another file or folder of the same model, of which `report.against.check` says the same
    - allow_pickle: read PyTorch's .bin weights, in a separate process
    - backend, device, threads: of what runs the model for calibration and check

    Raises DataError, SourceError, CheckpointError, UnsupportedModel, before a byte is written wherever that is known.
    """
    from partita_convert.conversion import Options, run

    options = Options(
        to=to,
        quantize=None if quantize is None else str(quantize),
        dtype=dtype,
        exact=exact,
        adapter=adapter,
        adapter_loss=adapter_loss,
        calibration=calibration,
        imatrix=imatrix,
        save_imatrix=save_imatrix,
        check=check,
        against=None if against is None else str(against),
        allow_pickle=allow_pickle,
        backend=backend,
        device=device,
        threads=threads,
    )
    return run(str(source), own(dest), options)
