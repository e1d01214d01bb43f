"""Where the turns of a long conversation stand in its text, by work that grows with it and not with its square.

What a template writes for a turn is found by rendering the conversation up to it and up to the one before: that is the
rule, and for every turn the whole is read again. Most templates only append, though: what they write for a message
depends on those in front of it, of these on the nearest, and nothing that follows changes it. Then a few messages are
rendered in place of all.

Invariant: None, unless the template is seen to append. It is seen where the pieces make up
the text of the whole, and where the conversation up to its last reply, to one in the middle and so on, rendered as it
is, is what the pieces say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TemplateError
from .chat_template import ALL, MarkedChat, Spans

_NEAR, _FAR = 3, 12  # how many in front of a message are rendered with it: at least, and at most to begin with a user's


@dataclass(frozen=True)
class Growth:
    """text: of all messages. ends: where the text of each ends, 0 for those in front of the first user's. openings: by
    the index of a reply, what the template writes to have it begun (`add_generation_prompt`)."""

    text: str
    ends: list[int]
    openings: dict[int, str]


def growth(chat: MarkedChat) -> Growth | None:
    """How the text of a conversation grows, if it is seen to."""
    try:
        return _seen(chat)
    except TemplateError:  # a few messages need not be a conversation that the template takes
        return None


def _seen(chat: MarkedChat) -> Growth | None:
    roles = chat.roles
    first = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles)) + 1
    fronts = _fronts(roles, first - 1)
    replies = [i for i in range(first, len(roles)) if roles[i] == "assistant"]
    if not replies or roles[first - 1] == "assistant":
        return None
    rest = range(first, len(roles))
    text, begin = chat.render_each([(ALL, False), (((0, first),), False)])
    before = dict(zip(rest, chat.render_each((fronts[i], False) for i in rest), strict=True))
    after = chat.render_each(((*fronts[i], (i, i + 1)), False) for i in rest)
    asked = dict(zip(replies, chat.render_each((fronts[i], True) for i in replies), strict=True))
    pieces = [_added(before[i], longer) for i, longer in zip(rest, after, strict=True)]
    openings = {i: _added(before[i], asked[i]) for i in replies}
    if None in pieces or None in openings.values() or "".join([begin, *map(str, pieces)]) != text:
        return None
    ends = [0] * (first - 1) + [len(begin)]
    for piece in pieces:
        ends.append(ends[-1] + len(str(piece)))
    found = Growth(text, ends, {i: str(opening) for i, opening in openings.items()})
    return found if _confirmed(chat, found) else None


def _fronts(roles: Sequence[str | None], head: int) -> list[Spans]:
    """For each message those that are rendered in front of it: the first `head` of all, and the nearest ones."""
    fronts: list[Spans] = []
    begin = head
    for i in range(len(roles)):
        if i - _NEAR > head and roles[i - _NEAR] == "user":
            begin = i - _NEAR
        near = begin
        if i - begin > _FAR:  # not with a tool's answer, which belongs to what asked for it
            last = range(i - _FAR, max(i - 2 * _FAR, head), -1)
            near = next((k for k in last if roles[k] != "tool"), i - _FAR)
        fronts.append(((0, head), (near, i)) if near > head else ((0, i),))
    return fronts


def _added(text: str, longer: str) -> str | None:
    return longer.removeprefix(text) if longer.startswith(text) else None


def _confirmed(chat: MarkedChat, found: Growth) -> bool:
    """Whether what is in front of the last reply, of one in the middle and so on, is rendered as it should be."""
    halves: list[int] = []
    count = len(found.ends)
    while (reply := max((i for i in found.openings if i <= count), default=0)) > 0:
        halves.append(reply)
        count = reply // 2
    which = [(((0, i),), prompt) for i in halves for prompt in (False, True)]
    expected = [found.text[: found.ends[i - 1]] + more for i in halves for more in ("", found.openings[i])]
    return chat.render_each(which) == expected
