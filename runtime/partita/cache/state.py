"""The quantized rotating key-value cache: one class, one write path, for every kind of layer.

Slots carry positions. Attention is a sum over slots, so their order never matters: nothing is ever moved, and what a
query sees is decided by one rule from positions alone:

    a query at q sees the slot at p  iff  0 <= p <= q and (p > q - window or p < sinks)

A window of W is W keys, the query's own included. The first `sinks` tokens of a row are kept for ever, unquantized; the
others go round a ring of `window + max(slack, chunk - 1)` slots, so that writing first and attending afterwards gives
every query of a chunk the same keys as any other chunking would. Sinks are as far from a query as they were from
min(q, anchor), anchor = sinks + window - 1, the last one before the ring began to turn (the rule of arXiv 2309.17453).
The last slot of every buffer takes what must go nowhere (padding); its position is always -1. Arrays are made and
lengthened in `buffers`; rows come and go in `rows`.

Sinks beyond the anchor: the sinks' keys before rotation are kept. A step of one token rotates them, at j + max(q -
anchor, 0), for all layers at once into the slots that they have, so that attention is the same as before; always from
the keys as they were, so that no error adds up, and also after a trim, once a row has been beyond. In a longer step
each query would need them elsewhere: there they are scored apart (`Sinks`), at j, by queries rotated at min(q, anchor);
in every step where scores depend on more than a distance (`LayerSpec.absolute`).

Keys of few bits lose a vector that all keys of a row have in common (`centres`): those of the ring before they are
stored, those of the sinks, which are kept as they are, when they are scored.

Positions and indices are device arrays and buffers grow in blocks, so a decode step has static shapes. The host keeps a
mirror of each row's length, and never reads the device to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import Backend, Rule, Sinks
from ..errors import ContextError
from ..model.config import RopeConfig
from ..model.rope import grown
from ..rings import cut, part, sides
from .centres import Centres, beside
from .rows import Rows
from .snapshot import Slots
from .spec import CacheSpec, LayerSpec, Span, bytes_per_token
from .view import Kind, Step, View, seen

FEW_QUERIES = 8
"""So many of a row are a step for kernels that pass over slots that are not seen."""


class Cache(Rows):
    """Keys and values of `batch` rows. room: tokens of a row that there is memory for from the start, so that buffers
    do not grow before. See the module's docstring for the rules."""

    def __init__(self, ops: Backend, spec: CacheSpec, batch: int = 1, *, room: int = 0):
        super().__init__(ops, spec, batch, room=room)
        self.dense = self._store.dense
        self._absolute = any(layer.absolute for layer in spec.attention.values())
        # made once: a step that is a CUDA graph cannot send numbers to the device
        self._centres = Centres(ops, spec, self._ropes)
        most = max([spec.chunk, *(span.sinks + 1 for span in spec.spans)])
        self._counted = ops.array(np.arange(most, dtype=np.int32))

    def __repr__(self) -> str:
        context = "no limit" if self.spec.context is None else f"context {self.spec.context}"
        return f"Cache(tokens {list(self.offsets)}, {context}, kv {self.spec.kv}, {self.nbytes} bytes)"

    def reset(self) -> None:
        """Forget everything and give back the memory beyond `room`."""
        super().reset()
        self._views: dict[Span, View] = {}
        self._angles: dict[RopeConfig, tuple[Array, Array]] = {}
        self._growth: dict[RopeConfig, Array | None] = {}
        self._turns: dict[Any, Any] = {}
        self._expected: Step | None = None

    # What is held

    @property
    def rope_size(self) -> tuple[int, ...]:
        """Blocks of the rotary tables, which grow with the longest row."""
        return tuple(table.blocks for table in self._ropes.values())

    def bytes_per_token(self) -> float:
        """Bytes that one more token in the ring costs, over all layers."""
        return bytes_per_token(self.spec)

    def slots(self, row: int = 0) -> Slots:
        """Tokens in the sinks and in the window of the full-attention layers (or of the only kind there is). Where no
        layer attends, all are in the window: nothing turns."""
        widest = max(self._positions, key=lambda s: (s.window is None, s.window or 0), default=Span(None, 0))
        length = self.offsets[row]
        sinks = min(length, widest.sinks)
        window = length - sinks if widest.window is None else min(length - sinks, widest.window)
        total = self.spec.context or length
        return Slots(sinks, window, max(total - sinks - window, 0))

    # One step: advance, then attend once a layer

    def advance(self, tokens: int, lengths: Sequence[int] | None = None) -> None:
        """Reserve the next positions of every row for a step of `tokens` new ones, and decide what its queries see.

        lengths: how many of them are real in each row (the rest is padding at the end); all, if None.
        Raises ContextError when the step is longer than the chunk that the ring was made for.
        """
        step, self._expected = self._expected, None
        self.begin_step(step or self.reserve(tokens, lengths))

    def expect(self, step: Step) -> None:
        """The next `advance` is for a step that has been reserved already: what is left of it runs on the device
        alone."""
        self._expected = step

    def reserve(self, tokens: int, lengths: Sequence[int] | None = None) -> Step:
        """The host's half of `advance`: grow, move the mirror on, and say which kind of step this is."""
        if tokens > self.spec.chunk:
            raise ContextError(f"a step of {tokens} tokens is longer than the cache's chunk of {self.spec.chunk}")
        counts = [tokens] * self.batch if lengths is None else list(lengths)
        first, after = min(self.offsets), [o + n for o, n in zip(self.offsets, counts, strict=True)]
        end = max(after)
        self._grow({span: self._needed(span, end, tokens) for span in self._capacity})
        for table in self._ropes.values():
            table.reserve(end + tokens)  # padding is rotated too, past the end
        self.offsets = after
        self._reached = [max(r, a) for r, a in zip(self._reached, after, strict=True)]
        kinds = tuple(
            Kind(
                writes_sinks=first < span.sinks,
                writes_ring=end > span.sinks,
                anchored=span.anchor is not None and span.sinks > 0 and max(self._reached) - 1 > span.anchor,
            )
            for span in self._positions
        )
        return Step(tokens, None if min(counts) == tokens else tuple(counts), kinds, self._reach(tokens))

    def _reach(self, tokens: int) -> tuple[int | None, ...]:
        """Of each span, how many slots behind the sinks such a step has to look at. Where there is room that no row has
        reached, the products of many queries with it would be for nothing; kernels for a few pass over it."""
        wanted = {span: self.spec.slots(span, max(self._reached)) for span in self._capacity}
        few = tokens <= FEW_QUERIES
        return tuple(None if few or wanted[span] == has else wanted[span] for span, has in self._capacity.items())

    def _needed(self, span: Span, end: int, tokens: int) -> int:
        """Slots for a step up to `end`. A prompt gets no more than it needs: its tiles attend to empty ones too."""
        needed = self.spec.slots(span, end)
        outgrown = tokens == 1 and needed > self._capacity[span]
        return self._store.room(self.spec, span, end, self.batch) if outgrown else needed

    def begin_step(self, step: Step) -> None:
        """The device's half: positions, where to write, and masks. Depends on `step` and device arrays alone."""
        ops, tokens = self.ops, step.tokens
        index = self._counted[None, :tokens]
        positions = queries = self._next[:, None] + index  # B T
        lengths = None
        if step.lengths is None:
            self._next = ops.assign(self._next, self._next + tokens)
        else:
            lengths = ops.array(np.asarray(step.lengths, np.int32))
            positions = ops.where(index < lengths[:, None], positions, -1)
            self._next = ops.assign(self._next, self._next + lengths)
        self._states.begin_step(index, lengths)
        self._angles = {rope: table.angles(queries) for rope, table in self._ropes.items()}
        self._growth = {rope: table.growth(queries) for rope, table in self._ropes.items()}
        self._turns = {}
        self._views = {
            span: self._view(span, kind, reach, positions, queries)
            for span, kind, reach in zip(self._positions, step.kinds, step.reach, strict=True)
        }

    def _view(self, span: Span, kind: Kind, reach: int | None, positions: Array, queries: Array) -> View:
        ops, ring, sinks = self.ops, self.spec.ring(span), span.sinks
        slot = positions
        if ring is not None:
            slot = ops.where(positions < sinks, positions, (positions - sinks) % ring + sinks)
        index = ops.where(positions >= 0, slot, sinks + self._capacity[span] - 1)
        held = self._positions[span] = self._mark(self._positions[span], positions, index)
        if reach is not None:
            held = held[:, : sinks + reach]
            reach += sinks if self.spec.kv.joint else 0
        sink_index = None
        if kind.writes_sinks:
            sink_index = ops.where((positions >= 0) & (positions < sinks), positions, sinks)
        p, q = held[:, None], positions[:, :, None]  # B 1 C, B T 1
        visible = (p >= 0) & (p <= q)
        if span.window is not None:
            near = p > q - span.window
            visible = visible & (near | (p < sinks) if sinks else near)
        turned, anchored = {}, {}
        apart = kind.anchored and (kind.writes_sinks or positions.shape[1] > 1 or self._absolute)
        if kind.anchored and (anchor := span.anchor) is not None:
            reached = ops.where(queries < anchor, queries, anchor)
            places = self._counted[None, : sinks + (not self.spec.kv.joint)] + queries[:, :1] * 0
            if apart:
                tables = {rope: self._ropes[rope] for rope in self._sink_keys.ropes(span)}
                anchored = {rope: (table.angles(reached), table.angles(places)) for rope, table in tables.items()}
            else:
                turned = self._sink_keys.turned(span, queries - reached + places[:, :sinks])
        rule = Rule(positions, held, span.window, sinks, visible)
        if self.spec.kv.joint:
            first = seen(ops, rule, 0, sinks) if apart else None
            if apart:
                rule = replace(rule, slots=ops.where(held >= sinks, held, -1), seen=visible & (p >= sinks))
            own = seen(ops, rule)
        else:
            first = seen(ops, rule, 0, sinks, spare=True) if sinks else None
            own = seen(ops, rule, sinks)
            index = ops.where(index >= sinks, index - sinks, self._capacity[span] - 1) if sinks else index
        both = None if first is None else (first, ops.concat([first.mask, own.mask], 2))
        written = index if kind.writes_ring or self.spec.kv.joint else None
        centres = {} if kind.writes_sinks else self._centres.of_all(span, self._sink_keys)
        return View(written, sink_index, reach, own, both, turned, anchored, centres)

    def _spread(self, x: Array) -> Array:
        """By the Hadamard rotation where the format has it: orthonormal on both sides of every product, so that scores
        and sums stay what they were."""
        return self.ops.hadamard(x) if self.spec.kv.hadamard else x

    def _mark(self, positions: Array, new: Array, index: Array) -> Array:
        """Positions (B, C) with `new` (B, T) at slots index (B, T), through the same write as keys and values."""
        written = self.ops.write(positions[:, None, :, None], new[:, None, :, None], index)
        return written[:, 0, :, 0]

    def attend(
        self,
        layer: int,
        x: Array,
        heads: int,
        sink_logits: Array | None = None,
        query_norm: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Rotate, write, then attend: what this layer's queries see, (B, heads, T, D).

        x: (B, T, heads + 2 * Hkv, D), queries, keys and values of the step announced by `advance`, before rotation.
        sink_logits: the layer's learned ones, float32 (heads,). query_norm: what becomes of queries after rotation.
        """
        ops, spec = self.ops, self.spec.layers[layer]
        assert isinstance(spec, LayerSpec)
        own, layer = spec.shares is None, layer if spec.shares is None else spec.shares
        buffers, view, kept = self._layers[layer], self._views[spec.span], spec.kv_heads if own else 0
        if spec.rope is not None:
            x = grown(ops, x, heads, self._growth[spec.rope])
        y = x
        if spec.rope is not None:
            name = "" if own else "shared"
            y = ops.rotate(x, self._turn(spec.rope, heads + kept, kept, self._angles[spec.rope], name))
        if query_norm is not None:
            y = ops.concat([query_norm(y[:, :, :heads]), y[:, :, heads:]], 2) if own else query_norm(y)
        y = self._spread(y)
        q = y[:, :, :heads].swapaxes(1, 2)
        centre = self._centres.of(layer, self._sink_keys, view.centres) if not own else None
        if own:
            centre = self._remember(layer, x[:, :, heads : heads + kept], y[:, :, heads:])
        k, v = sides(buffers.kv if view.reach is None else cut(buffers.kv, view.reach))
        out = ops.cached_attention(
            q,
            k,
            v,
            view.kv.mask,
            scale=spec.scale,
            sinks=self._sinks(layer, x, q, centre, query_norm),
            softcap=spec.softcap,
            sink_logits=sink_logits,
            rule=view.kv.rule,
        )
        return self._spread(out)

    def _remember(self, layer: int, unrotated: Array, new: Array) -> Array | None:
        """Write keys before rotation (B, T, Hkv, D), and keys and values (B, T, 2 * Hkv, D): the layer's centre."""
        ops, buffers, view = self.ops, self._layers[layer], self._views[self.spec.attention[layer].span]
        if view.sink_index is not None:
            self._sink_keys.write(layer, unrotated, view.sink_index)
            if buffers.sinks is not None:
                buffers.sinks = ops.store(buffers.sinks, new, view.sink_index)
        # its sinks are complete where a ring is written
        centre = self._centres.of(layer, self._sink_keys, view.centres)
        if view.index is not None:
            buffers.kv = ops.store(buffers.kv, new if centre is None else new - centre, view.index)
        self._put_sinks(layer, view.turned)
        return centre

    def causal_conv(self, layer: int, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """As in `SequenceState`: the layer keeps the last inputs of each row."""
        return self._states.causal_conv(layer, x, weight, bias)

    def gated_delta(self, layer: int, q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
        """As in `SequenceState`: the layer keeps its matrices as each row's last token leaves them."""
        return self._states.gated_delta(layer, q, k, v, decay, beta)

    def _sinks(
        self,
        layer: int,
        x: Array,
        q: Array,
        centre: Array | None,
        query_norm: Callable[[Array], Array] | None,
    ) -> Sinks[Array] | None:
        """What is scored apart from the ring: sinks beside a packed one, and those of queries beyond the anchor. Their
        scores lose what those of the ring's keys lose without the centre."""
        ops, spec, buffers = self.ops, self.spec.attention[layer], self._layers[layer]
        view, heads = self._views[spec.span], q.shape[1]
        if view.first is None:
            return None
        kv = buffers.kv[:, :, :, : spec.span.sinks] if buffers.sinks is None else buffers.sinks
        shift = None
        if spec.rope is not None and spec.rope in view.anchored:
            shift = None if centre is None else self._centres.shift(q, centre, spec.scale)
            queries, places = view.anchored[spec.rope]
            turns = self._turn(spec.rope, heads, 0, queries, "anchored")
            turned = ops.rotate(x[:, :, :heads], turns)
            q = self._spread(turned if query_norm is None else query_norm(turned)).swapaxes(1, 2)
            turns = self._turn(spec.rope, spec.kv_heads, 0, places, "sinks")
            keys = self._spread(self._sink_keys.rotated(layer, kv.shape[3], turns)).swapaxes(1, 2)
            kv = ops.concat([ops.cast(keys[None], self.dense[self.spec.kv.sink_bits]), kv[1:]], 0)
        elif centre is not None:
            kv = kv - beside(centre)
        seen_first, both = view.first
        return Sinks(q, kv, seen_first.mask, both, shift)

    def _put_sinks(self, layer: int, turned: Mapping[LayerSpec, Array]) -> None:
        """The sinks' keys of a layer into their slots, as `SinkKeys.turned` gave them; nothing where it gave none."""
        keys, buffers = self._sink_keys.of(layer, turned), self._layers[layer]
        if keys is None:
            return
        keys = self._spread(keys)
        if buffers.sinks is None:
            buffers.kv = self.ops.put_keys(buffers.kv, keys)
        else:
            buffers.sinks = self.ops.put_keys(buffers.sinks, keys)

    def _turn(self, rope: RopeConfig, heads: int, plain: int, angles: tuple[Array, Array], name: str = "") -> Any:
        """What `rotate` takes, once a step for all layers that are alike."""
        key = rope, heads, plain, name
        if key not in self._turns:
            self._turns[key] = self.ops.turns(*angles, heads, plain, packs=plain > 0 and not self.spec.kv.joint)
        return self._turns[key]

    # Taking back

    def checkpoint(self) -> None:
        """Keep what recurrent layers remember now, so that `trim` can come back to here. Of many the cache keeps some
        (`CacheSpec.checkpoints`). Without such layers nothing need be kept."""
        self._states.checkpoint(self.offsets)

    def mark(self, *, inputs: bool) -> None:
        """Until the next mark `trim` can come back to here, whatever the layers; inputs: and to any token behind, if no
        step of these is compiled."""
        self._states.mark(self.offsets, inputs=inputs)

    def unmark(self) -> None:
        """Nothing more will be taken back."""
        self._states.unmark()

    def trim(self, tokens: int) -> None:
        """Take the last `tokens` of every row back, exactly, as if they had never been written.

        Raises ContextError when a position that the new end sees has been overwritten, or the row is shorter, or has
        recurrent layers without a checkpoint there.
        """
        ends = [offset - tokens for offset in self.offsets]
        if tokens < 0 or min(ends) < 0:
            raise ContextError(f"cannot take back {tokens} of {min(self.offsets)} tokens")
        if not self.can_trim(tokens):
            why = "what the ring held before them is overwritten"
            if self.state().sees(tokens):
                why = "recurrent layers have no checkpoint there"
            raise ContextError(f"cannot take back {tokens} tokens: {why}")
        self._states.trim(self.offsets, ends)
        # Slots are left as they are: a position past the end is seen by no query (p <= q) until it is written again,
        # and it is written to the very slot that holds it now.
        self.offsets = ends
        self._next = self._next - tokens
        if all(max(ends) <= span.sinks for span in self._positions):
            self._empty_rings()

    def _empty_rings(self) -> None:
        """Rows that were taken back into their sinks: nothing is overwritten any more, and rings give memory back.
        Sinks get the rotation that they were written with."""
        ops, end = self.ops, self._next[:, None]
        for span, positions in self._positions.items():
            self._capacity[span] = self.spec.slots(span, max(self.room, *self.offsets))
            held = positions[:, : span.sinks]
            empty = self._store.positions(self._capacity[span], self.batch)
            self._positions[span] = ops.concat([ops.where(held < end, held, -1), empty], 1) if span.sinks else empty
        places = {
            span: self._counted[None, : span.sinks] + self._next[:, None] * 0 for span in self._positions if span.sinks
        }
        turned = {spec: keys for span, at in places.items() for spec, keys in self._sink_keys.turned(span, at).items()}
        for layer, buffers in self._layers.items():
            spec = self.spec.attention[layer]
            sinks, empty = spec.span.sinks, self._new_buffers(spec)
            if sinks and buffers.sinks is None:
                k, v = (part(buffers.kv, i)[:, :, :sinks].swapaxes(1, 2) for i in range(2))
                empty.kv = ops.store(empty.kv, ops.concat([k, v], 2), places[spec.span])
            buffers.kv = empty.kv
            self._put_sinks(layer, turned)
        self._reached = list(self.offsets)

    def can_trim(self, tokens: int) -> bool:
        """Whether so many tokens of every row can be taken back."""
        held = self.state()
        if held.can_trim(tokens):
            return True
        ends = [offset - tokens for offset in self.offsets]
        return bool(self.spec.recurrent) and held.sees(tokens) and self._states.is_marked(ends)
