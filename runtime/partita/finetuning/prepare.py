"""From settings to a run that only has to be started: data, model, what is trained of it, and whether it fits.

Cheap mistakes come first: settings, then data, then weights. Writes nothing to the run's folder. Invariant: the
settings of a `Prepared` leave nothing open, so that a run that is begun again from them is the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..adapters.lora import LoraConfig, count_values
from ..backend import Backend
from ..checkpoint.base import Checkpoint
from ..checkpoint.open import open_checkpoint
from ..data import files as data_files
from ..data.load import Batch, Batches, Splits, load_data
from ..data.records import Chat
from ..errors import CheckpointError, DataError, MemoryBudgetError
from ..files.bounded import read_object
from ..files.paths import own
from ..group import Group
from ..language_model import open_backend, open_group
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.load import load_decoder, read_config, weight_bytes
from ..sources.listener import Listener
from ..sources.resolve import full_name, resolve
from ..text.chat_template import ChatTemplate
from ..text.load import load_tokenizer, tokenizer_from_folder
from ..text.tokenizer import Tokenizer
from ..training.initialize import initialise
from ..training.memory import Estimate, TrainingShape, admit
from ..training.optim import AdamW
from ..training.trainable import Trainable, adapted, full
from ..training.trainer import TrainConfig, Trainer
from .settings import EPOCHS, MAX_LENGTH, MOST_STEPS, Settings

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Prepared:
    """settings: with everything decided. checkpoint: the base, or random weights. parameters: of the whole model.

    group: the processes of the run. chats: whether it learns conversations, so that prompts go through the template.
    weights: bytes that loading took. rest: what else training takes, estimated.
    """

    settings: Settings
    ops: Backend
    group: Group
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    splits: Splits
    chats: bool
    lora: LoraConfig | None
    trainer: Trainer
    parameters: int
    weights: int
    rest: Estimate

    @property
    def model(self) -> Trainable:
        return self.trainer.model

    @property
    def trained(self) -> int:
        return sum(math.prod(x.shape) for x in self.trainer.values.values())


def prepare(settings: Settings, out: Path, listener: Listener | None = None) -> Prepared:
    """Everything but the first step. out: the run's folder; the trainer writes its checkpoints there, when it runs."""
    listener = listener or Listener()
    path = resolve(settings.model, progress=listener.fetching())
    settings = replace(settings, model=full_name(settings.model))
    checkpoint, tokenizer = open_base(settings, path)
    ops = choose_backend(settings, checkpoint, listener)
    settings = replace(settings, dtype=ops.dtype)  # decided, so that a run goes on in the same on another backend
    settings = with_length(settings, read_config(checkpoint).max_positions)
    lora = lora_of(settings)
    chats = tokenizer.chat_template is not None and _is_chat(settings.data, listener)
    _check_variables(settings, tokenizer, chats, listener)
    splits = read_data(settings, tokenizer, listener)
    group = open_group(ops)  # waits for the others, so mistakes in settings and data come first
    batches = batches_of(settings, splits.train, group)
    settings = decided(settings, batches)
    _ = _train_config(settings)  # its mistakes are reported before the model is loaded
    loaded = _loaded(settings, ops, checkpoint, lora, listener)
    settings = replace(settings, grad_checkpoint=loaded.grad_checkpoint)
    trainer = Trainer(
        ops,
        loaded.model,
        loaded.values,
        _train_config(settings),
        batches,
        validation=_validation(settings, splits, group),
        folder=out / CHECKPOINTS if group.rank == 0 else None,
        identity={"model": checkpoint.fingerprint(), "dtype": ops.dtype},
        group=group,
    )
    sizes = loaded.parameters, loaded.weights, loaded.rest
    return Prepared(settings, ops, group, checkpoint, tokenizer, splits, chats, lora, trainer, *sizes)


def with_length(settings: Settings, most: int) -> Settings:
    """With `max_length` decided. most: positions that the model was trained on; DataError for more."""
    if settings.max_length is None:
        return replace(settings, max_length=min(MAX_LENGTH, most))
    if settings.max_length > most:
        raise DataError(
            f"`max_length` {settings.max_length} is beyond the {most} tokens this model was trained on",
            field="max_length",
        )
    return settings


@dataclass(frozen=True)
class _Loaded:
    """The model with what is trained of it. The rest as in `Prepared`, and `grad_checkpoint` as it was decided."""

    model: Trainable
    values: dict[str, Any]
    grad_checkpoint: bool
    parameters: int
    weights: int
    rest: Estimate


def _loaded(
    settings: Settings, ops: Backend, checkpoint: Checkpoint, lora: LoraConfig | None, listener: Listener
) -> _Loaded:
    """Load the weights, and see whether training them fits beside them. MemoryBudgetError where it does not."""
    parameters = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    shape = TrainingShape(
        settings.batch_size,
        settings.max_length or 0,
        parameters,
        ITEMSIZE[ops.dtype],
        bool(settings.grad_checkpoint),
        settings.packing,
        settings.accumulate,
    )
    before = ops.memory().active
    with listener.working("loading the model") as advance:
        decoder = load_decoder(ops, checkpoint, stack=False, on_layer=advance)
    ops.sync()
    weights, config = max(ops.memory().active - before, 0), decoder.config
    model, values = _trainable(ops, checkpoint, decoder, lora, shape, settings.grad_checkpoint)
    del decoder  # of full training, whose weights the trainer holds
    shape = replace(shape, trained=sum(math.prod(x.shape) for x in values.values()))
    free, wanted = ops.memory().free, settings.grad_checkpoint
    checkpointed, rest = _admitted(config, shape, wanted, free, lora is None, listener)
    return _Loaded(model, values, checkpointed, parameters, weights, rest)


def choose_backend(settings: Settings, checkpoint: Checkpoint, listener: Listener) -> Backend:
    """Where "auto" computes in float32, weights are in float32 too: what shortens decoding would round what is trained
    on. Raises BackendUnavailable where a backend computes no gradients."""
    ops = open_backend(
        settings.backend,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        needs=lambda ops: weight_bytes(ops, checkpoint),
        on_fallback=listener.note,
    )
    if ops.decode_dtype != ops.dtype:
        ops = open_backend(ops.name, device=ops.device, dtype=ops.dtype, threads=settings.threads)
    ops.value_and_grad(_no_loss)
    return ops


def _trainable(
    ops: Backend,
    checkpoint: Checkpoint,
    decoder: Decoder,
    lora: LoraConfig | None,
    shape: TrainingShape,
    grad_checkpoint: bool | None,
) -> tuple[Trainable, dict[str, Any]]:
    """What is trained, and its initial values. shape: trained is the number of all weights here."""
    count = shape.trained if lora is None else count_values(decoder, lora)
    values_too = count * 4 // 3  # four arrays of their size to come, where the estimate counts three
    least = replace(shape, trained=values_too, grad_checkpoint=grad_checkpoint is not False)
    admit(decoder.config, least, ops.memory().free, full=lora is None)
    return full(ops, decoder, checkpoint) if lora is None else adapted(ops, decoder, lora)


def open_base(settings: Settings, path: Path) -> tuple[Checkpoint, Tokenizer]:
    """What is trained, and its tokenizer. From scratch, MODEL gives the tokenizer alone and needs no weights."""
    if settings.from_scratch is None:
        checkpoint = open_checkpoint(path)
        return checkpoint, load_tokenizer(checkpoint)
    metadata = None if path.is_dir() else open_checkpoint(path).metadata
    tokenizer = tokenizer_from_folder(path) if metadata is None else load_tokenizer(open_checkpoint(path))
    config = {"vocab_size": tokenizer.vocab_size, **_shape(own(settings.from_scratch))}
    if type(config["vocab_size"]) is int and config["vocab_size"] < tokenizer.vocab_size:
        raise DataError(
            f"{settings.from_scratch}: vocab_size {config['vocab_size']} is less than the {tokenizer.vocab_size} "
            f"tokens of {settings.model}: leave it out, and it is theirs"
        )
    return replace(initialise(config, settings.seed, path), metadata=metadata), tokenizer


def _shape(path: Path) -> dict[str, Any]:
    """The config.json of a model from scratch."""
    try:
        return read_object(path)
    except CheckpointError as error:
        what = f"`from_scratch`: {error}; give a config.json with model_type, hidden_size, …"
        raise DataError(what, field="from_scratch") from None


def lora_of(settings: Settings) -> LoraConfig | None:
    if settings.method == "full":
        return None
    return LoraConfig(
        rank=settings.rank,
        alpha=settings.scale_alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        layers=settings.layers,
        rslora=settings.rslora,
        dora=settings.method == "dora",
        seed=settings.seed,
    )


def read_data(settings: Settings, tokenizer: Tokenizer, listener: Listener) -> Splits:
    with listener.working("reading the data") as advance:
        splits = load_data(
            settings.data,
            tokenizer,
            None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer),
            max_length=settings.max_length or 0,
            valid_fraction=settings.valid_fraction,
            seed=settings.seed,
            variables=settings.variables,
            control_tokens=settings.control_tokens,
            on_progress=advance,
            progress=listener.fetching(),
        )
    if settings.patience is not None and splits.valid is None:
        raise DataError(
            "`patience` waits for a better validation loss, and there is none: leave it out, or raise `valid_fraction`",
            field="patience",
        )
    return splits


def _check_variables(settings: Settings, tokenizer: Tokenizer, chats: bool, listener: Listener) -> None:
    """DataError where no template would be given them; a line where the template does not read some of them."""
    if not settings.template_var:
        return
    if not chats:
        why = "the model has no chat template" if tokenizer.chat_template is None else "DATA begins with plain text"
        raise DataError(f"`template_var` is for conversations, and {why}: leave it out", field="template_var")
    template = ChatTemplate.of(tokenizer)
    unread = [name for name in settings.variables if not template.mentions(name)]
    if unread:
        listener.note(f"the model's chat template does not read {', '.join(unread)}")


def _is_chat(source: str, listener: Listener) -> bool:
    """Whether the first record of the training data is a conversation."""
    path = data_files.find(source, progress=listener.fetching()).train[0]
    if path.suffix == ".txt":
        return False
    found = next(data_files.records(path), None)
    return found is not None and isinstance(found.record, Chat)


def batches_of(settings: Settings, data: Any, group: Group) -> Batches:
    batches = Batches(data, settings.batch_size, settings.max_length or 0, settings.packing, settings.seed)
    return batches.shard(group.rank, group.world_size) if group.world_size > 1 else batches


def _validation(settings: Settings, splits: Splits, group: Group) -> Callable[[], Iterable[Batch]] | None:
    """Always the same batches, so that one evaluation can be compared with another."""
    if splits.valid is None:
        return None
    batches = batches_of(settings, splits.valid, group)
    return lambda: islice(batches.one_epoch(), settings.eval_batches)


def test_batches(prepared: Prepared) -> Iterable[Batch] | None:
    """All of the test data once, this process's share of it; None where there is none."""
    if prepared.splits.test is None:
        return None
    return batches_of(prepared.settings, prepared.splits.test, prepared.group).one_epoch()


def decided(settings: Settings, batches: Batches) -> Settings:
    """Steps and what depends on their number."""
    steps = settings.steps
    if steps is None:
        epochs = EPOCHS if settings.epochs is None else settings.epochs
        steps = max(math.ceil(batches.batches_in(0) * epochs / settings.accumulate), 1)
        steps = min(steps, MOST_STEPS) if settings.epochs is None else steps
    return replace(
        settings,
        steps=steps,
        epochs=None,
        alpha=None if settings.method == "full" else settings.scale_alpha,
        learning_rate=settings.rate,
        warmup=min(steps // 20, 100) if settings.warmup is None else settings.warmup,
        eval_every=max(steps // 10, 1) if settings.eval_every is None else settings.eval_every,
    )


def _admitted(
    config: ModelConfig, shape: TrainingShape, wanted: bool | None, free: int, trains_all: bool, listener: Listener
) -> tuple[bool, Estimate]:
    """Whether gradients are checkpointed: as wanted, or, where nothing was said, if training does not fit otherwise."""
    if wanted is not None:
        return wanted, admit(config, shape, free, full=trains_all)
    try:
        return False, admit(config, shape, free, full=trains_all)
    except MemoryBudgetError:
        rest = admit(config, replace(shape, grad_checkpoint=True), free, full=trains_all)
    listener.note("gradient checkpointing is on: memory has no room for all activations at once")
    return True, rest


def _no_loss(ops: Backend, values: Any) -> tuple[Any, tuple[()]]:
    return values, ()


def _train_config(settings: Settings) -> TrainConfig:
    return TrainConfig(
        steps=settings.steps or 1,
        learning_rate=settings.rate,
        schedule=settings.schedule,  # pyright: ignore[reportArgumentType]
        warmup=settings.warmup or 0,
        optimizer=AdamW(weight_decay=settings.weight_decay),
        clip=settings.clip or None,
        accumulate=settings.accumulate,
        grad_checkpoint=bool(settings.grad_checkpoint),
        evaluate_every=settings.eval_every,
        checkpoint_every=settings.save_every,
        patience=settings.patience,
    )
