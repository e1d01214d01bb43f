"""Training records to token ids, each marked trained or not. Reads no files and knows no model.

What is trained of a chat is found by the template itself:

1. What `{% generation %}` marks, in templates that have it.
2. Else, for each turn of the assistant, the difference between the conversation up to and including that turn and the
   conversation before it with the beginning of a reply (`add_generation_prompt`).

Both are in text. A turn's trained tokens reach to the last token in it that ends generation (`<|im_end|>`), so that a
newline after it is not trained; such a token that follows the marks at once belongs to them.

Templates may write an earlier turn otherwise than when it was the last one (`<think>` left out). The rule: a document
holds consecutive turns as long as each is written as it was before, and where the template changes its mind a new
document begins with that turn as the only trained one. So every turn is trained exactly in the context in which it
would be generated, whatever the template does; the price is that the common beginning is read again.

Ids are those of inference: prompt and reply are tokenized apart, as a reply is generated after a finished prompt.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

from ..errors import DataError
from ..text.chat_template import ChatTemplate, MarkedChat, one_bos
from ..text.template_growth import Growth, growth
from ..text.tokenizer import Tokenizer
from .notes import Notes
from .records import Chat, Completion, Record, Text

# what `strftime_now` says in training: a run that goes on after midnight, or is resumed next week, sees the same tokens
TODAY = (2024, 7, 26)
_LONG = 32  # messages from which on it is worth a try to render only a few at a time
_MOST = 1000  # messages of which each turn is rendered with all that stands before it: seconds for one record
_BATCH = 8  # turns
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

Segment = tuple[Sequence[tuple[str, bool]], bool]  # parts as the tokenizer takes them; trained?


@dataclass(frozen=True)
class Document:
    """ids: one sequence that is read from its beginning. trained: one flag a token; the first is never predicted.
    unopened: turns that lack the text with which the template opens a reply."""

    ids: list[int]
    trained: list[bool]
    unopened: int = 0


class Encoder:
    """Encodes records for one model.

    template: None for a base model, which then takes no chats. variables: what the template is given besides
    (`enable_thinking=False`). control_tokens: their literals in texts, prompts and completions are read as tokens; in
    chats only the template places them. `notes` says what nobody would notice otherwise.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        variables: Mapping[str, Any] | None = None,
        *,
        control_tokens: bool = False,
    ) -> None:
        self._tokenizer, self._template = tokenizer, None if template is None else template.dated(*TODAY)
        self._variables = dict(variables or {})
        self._control_tokens = control_tokens
        self._end = end_of_text(tokenizer)
        self.notes = Notes()

    def encode(self, record: Record, place: str = "the record") -> list[Document]:
        """The documents of a record: one, or more for a chat whose template writes earlier turns differently.

        Raises TemplateError where the template fails or takes no such messages, DataError where it cannot be told what
        is to be trained. place: of the record, for `notes`.
        """
        self.notes.unread(record.unread, place)
        if isinstance(record, Text):
            return [self._plain([([self._part(record.text, place)], True)])]
        if isinstance(record, Completion):
            prompt, completion = self._part(record.prompt, place), self._part(record.completion, place)
            return [self._plain([([prompt], False), ([completion], True)])]
        return self._chat(record, place)

    def long_text(
        self, blocks: Sequence[str], on_block: Callable[[int], None] = lambda done: None, place: str = "the text"
    ) -> array[int]:
        """Ids of one long text given as consecutive blocks, without BOS, with the token that ends a text.

        on_block: called with the number of characters that are done.
        """
        ids, done = array("i"), 0
        for block in blocks:
            ids.extend(self._tokenizer.encode_parts([self._part(block, place)], continues=len(ids) > 0))
            done += len(block)
            on_block(done)
        if self._end is not None and ids[-1:] != array("i", [self._end]):
            ids.append(self._end)
        return ids

    def _part(self, text: str, place: str) -> tuple[str, bool]:
        """Plain text as the tokenizer takes it, and a note where someone may have meant something else."""
        if not self._control_tokens and (found := self._tokenizer.control_pattern.search(text)):
            self.notes.letters(found[0], place)
        return text, self._control_tokens

    def _plain(self, segments: Sequence[Segment]) -> Document:
        ids, runs = encode_segments(self._tokenizer, segments)
        trained = _flags(len(ids), runs)
        if self._end is not None and ids[-1:] != [self._end]:
            ids, trained = [*ids, self._end], [*trained, True]
        tokenizer = self._tokenizer
        if tokenizer.adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids, trained = [tokenizer.bos_id, *ids], [False, *trained]
        return Document(ids, trained)

    def _chat(self, record: Chat, place: str) -> list[Document]:
        if self._template is None:
            raise DataError(
                'this model has no chat template (a base model): give "text", or "prompt" and "completion" as strings'
            )
        variables = self._variables if record.tools is None else {**self._variables, "tools": record.tools}
        chat = MarkedChat(self._tokenizer, self._template, record.messages, **variables)
        drafts = marked_turns(chat, record) or turns(chat, record)
        self._note(chat, record, place)
        return [self._document(chat, draft) for draft in drafts]

    def _note(self, chat: MarkedChat, record: Chat, place: str) -> None:
        """Keys that the template does not read. Those that are noted are not looked at again."""
        if self.notes.full:
            return
        self.notes.unread(chat.unread(self.notes.message_keys), place, of_messages=True)
        if record.tools is not None and not chat.mentions("tools"):
            self.notes.unread(["tools"], place)

    def _document(self, chat: MarkedChat, draft: Draft) -> Document:
        segments: list[Segment] = []
        at = 0
        for begin, end in draft.spans:
            segments += [(chat.parts(draft.text[at:begin]), False), (chat.parts(draft.text[begin:end]), True)]
            at = end
        segments.append((chat.parts(draft.text[at:]), False))
        ids, runs = encode_segments(self._tokenizer, segments)
        stops = self._tokenizer.stop_ids
        trained = _flags(len(ids), [(begin, _turn_end(ids, begin, end, stops)) for begin, end in runs])
        front = one_bos(self._tokenizer, ids)  # differs at the very front only
        kept = trained[max(0, len(ids) - len(front)) :]
        return Document(front, [False] * (len(front) - len(kept)) + kept, draft.unopened)


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """The token that closes a text: the main EOS, else one known by its name; None for a vocabulary without."""
    if tokenizer.eos_id is not None:
        return tokenizer.eos_id
    return next((tokenizer.controls[name] for name in _END_OF_TEXT if name in tokenizer.controls), None)


# ---------------------------------------------------------------- what is trained, in text


@dataclass(frozen=True)
class Draft:
    """A document as text. spans: of the trained characters, ascending. unopened: as in Document."""

    text: str
    spans: tuple[tuple[int, int], ...]
    unopened: int = 0


def marked_turns(chat: MarkedChat, record: Chat) -> list[Draft]:
    """By `{% generation %}`; [] where the template has none, marks nothing here, or writes other text with marks."""
    if not chat.begin:
        return []
    text = chat.render(add_generation_prompt=False)
    known = 0
    if record.first:
        known = len(_common(text, chat.render(record.first, add_generation_prompt=False)))
    left = _left(chat, record, text)
    if left is None:
        return []
    plain = ""
    spans: list[tuple[int, int]] = []
    for i, piece in enumerate(chat.render(add_generation_prompt=False, marks=True).split(chat.begin)):
        inside, _, after = piece.partition(chat.end) if i else ("", "", piece)
        span = (max(len(plain), known), len(plain) + len(inside))
        if span[0] < span[1] and not any(begin < span[1] and span[0] < end for begin, end in left):
            spans.append(span)
        plain += inside + after
    return [Draft(text, tuple(spans))] if spans and plain == text else []


def _left(chat: MarkedChat, record: Chat, text: str) -> list[tuple[int, int]] | None:
    """Where in `text` the messages stand that are left untrained; None where it is not clear."""
    if len(record.messages) > _MOST and record.left:
        return None
    found: list[tuple[int, int]] = []
    for i in sorted(record.left):
        before, through = chat.render_each((((0, n),), False) for n in (i, i + 1))
        if not (through.startswith(before) and text.startswith(through)):
            return None
        found.append((len(before), len(through)))
    return found


def turns(chat: MarkedChat, record: Chat) -> list[Draft]:
    """By differences of renderings; more than one draft where the template writes earlier turns differently later."""
    replies = record.replies
    found = growth(chat) if len(record.messages) >= _LONG else None
    if found is not None:
        return [_grown(found, replies)]
    if len(record.messages) > _MOST:
        raise DataError(
            f"{len(record.messages)} messages, of which the chat template writes early ones differently as others "
            f"follow: split conversations of over {_MOST}"
        )
    drafts: list[Draft] = []
    for i, asked, answered in _renderings(chat, replies):
        opened = answered.startswith(asked)
        begin = len(asked) if opened else _reply_begin(chat, i, asked, answered)
        _check_written(i, answered[begin:])
        draft = Draft(answered, ((begin, len(answered)),), 0 if opened else 1)
        if drafts and asked.startswith(drafts[-1].text) and answered.startswith(drafts[-1].text):
            last = drafts.pop()
            draft = replace(draft, spans=last.spans + draft.spans, unopened=last.unopened + draft.unopened)
        drafts.append(draft)
    return drafts


def _renderings(chat: MarkedChat, replies: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Each reply with the text in front of it, the beginning of a reply included, and the text that ends with it."""
    for start in range(0, len(replies), _BATCH):
        some = replies[start : start + _BATCH]
        texts = chat.render_each(pair for i in some for pair in ((((0, i),), True), (((0, i + 1),), False)))
        yield from zip(some, texts[::2], texts[1::2], strict=True)


def _grown(found: Growth, replies: Sequence[int]) -> Draft:
    """The one document of a conversation whose text only grows."""
    spans: list[tuple[int, int]] = []
    unopened = 0
    for i in replies:
        start, end, opening = found.ends[i - 1], found.ends[i], found.openings[i]
        opened = found.text.startswith(opening, start, end)
        begin = start + len(opening if opened else _common(opening, found.text[start:end]))
        _check_written(i, found.text[begin:end])
        spans.append((begin, end))
        unopened += not opened
    return Draft(found.text[: spans[-1][1]], tuple(spans), unopened)


def _check_written(i: int, text: str) -> None:
    if not text.strip():
        raise DataError(f"messages[{i}]: the chat template writes nothing for this turn of the assistant")


def _reply_begin(chat: MarkedChat, i: int, asked: str, answered: str) -> int:
    """Where in `answered` the reply of messages[i] begins when the template opens replies with more than that.

    Some open a reply with text that finished turns lack (`<think>`): the turn then begins where the two part. Parting
    before the turn means that the turn changed what stands in front of it.
    """
    begin = len(_common(asked, answered))
    before = chat.render(i, add_generation_prompt=False) if i else ""
    if begin < len(before) or not answered.startswith(before):
        raise DataError(
            f"messages[{i}]: the chat template changes earlier text when this turn follows, so that it cannot be told "
            'what is to be trained: give "prompt" and "completion" as plain text'
        )
    return begin


def _common(a: str, b: str) -> str:
    """The common beginning."""
    if a.startswith(b):
        return b
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


# ---------------------------------------------------------------- text to ids


def encode_segments(tokenizer: Tokenizer, segments: Sequence[Segment]) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of consecutive segments, without a BOS of our own, and the ranges of ids of the trained ones.

    Each segment is tokenized apart. A library that puts a space in front of whatever it is given would then change the
    text; if so, the whole is tokenized at once, and a token across a boundary belongs to the later segment.
    """
    ids: list[int] = []
    cuts = [0]
    for parts, _ in segments:
        ids += tokenizer.encode_parts(parts, continues=bool(ids))
        cuts.append(len(ids))
    whole = _merged(part for parts, _ in segments for part in parts)
    text = tokenizer.decode(ids, specials=True)
    if text != "".join(piece for piece, _ in whole):
        joined = tokenizer.encode_parts(whole)
        if tokenizer.decode(joined, specials=True) != text:  # equal: the vocabulary itself changes text (NFC)
            ids, cuts = joined, _cuts(tokenizer, segments, joined)
    return ids, [(cuts[i], cuts[i + 1]) for i, (_, trained) in enumerate(segments) if trained]


def _cuts(tokenizer: Tokenizer, segments: Sequence[Segment], joined: Sequence[int]) -> list[int]:
    """Where each segment begins in the ids of the whole; a token across a boundary belongs to the later one."""
    texts = ["".join(text for text, _ in parts).encode("utf-8", "replace") for parts, _ in segments]
    ends = _ends(map(tokenizer.token_bytes, joined), b"".join(texts))
    if ends is None:
        return _cuts_of_ids(tokenizer, segments, joined)
    cuts: list[int] = []
    for begin in accumulate(map(len, texts[:-1]), initial=0):
        at = bisect_left(ends, begin)
        cuts.append(at + 1 if begin and at < len(ends) and ends[at] == begin else at if begin else 0)
    return [*cuts, len(joined)]


def _ends(pieces: Iterable[bytes], text: bytes) -> list[int] | None:
    """Where in the text the bytes of each token end, but for spaces of the library's own; None where it has changed
    more."""
    ends: list[int] = []
    at = 0
    for piece in pieces:
        if not text.startswith(piece, at):
            piece = piece.removeprefix(b" ")
            if not text.startswith(piece, at):
                return None
        at += len(piece)
        ends.append(at)
    return ends if at == len(text) else None


def _cuts_of_ids(tokenizer: Tokenizer, segments: Sequence[Segment], joined: Sequence[int]) -> list[int]:
    """The same of a text that the vocabulary changes: as far as the ids of all before it are those of the whole. Work
    that grows with the square."""
    if len(segments) > 2 * _MOST:
        raise DataError(
            f"{len(segments) // 2} turns, and the tokenizer changes their text: split conversations of over {_MOST}"
        )
    cuts = [0]
    before: list[tuple[str, bool]] = []
    for parts, _ in segments[:-1]:
        before += parts
        ids = tokenizer.encode_parts(_merged(before))
        differs = (i for i, (x, y) in enumerate(zip(ids, joined, strict=False)) if x != y)
        cuts.append(max(cuts[-1], next(differs, min(len(ids), len(joined)))))
    return [*cuts, len(joined)]


def _merged(parts: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The same text with neighbours of one kind in one part, as the tokenizer would see it uncut."""
    return [("".join(text for text, _ in run), kind) for kind, run in groupby(parts, key=lambda part: part[1])]


def _turn_end(ids: Sequence[int], begin: int, end: int, stops: frozenset[int]) -> int:
    """Where a turn's trained ids end: after its last stop token, or the one that follows at once, else at `end`."""
    last = next((i for i in range(end - 1, begin - 1, -1) if ids[i] in stops), None)
    if last is not None:
        return last + 1
    return end + 1 if end < len(ids) and ids[end] in stops else end


def _flags(count: int, runs: Sequence[tuple[int, int]]) -> list[bool]:
    flags = [False] * count
    for begin, end in runs:
        flags[begin:end] = [True] * (end - begin)
    return flags
