"""From DATA to splits: files, folders and texts, bad records named by file and line, what is held out and lost."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.data import files as data_files
from partita.data.load import Batches, Splits, cut_text, load_data
from partita.data.records import Chat, Completion, Text, parse, parse_line
from partita.errors import DataError
from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder

USER, REPLY = {"role": "user", "content": "the fox"}, {"role": "assistant", "content": "a dog"}


@pytest.fixture
def load(tiny_model):
    tokenizer = tokenizer_from_folder(tiny_model)

    def make(source: Path, max_length: int = 64, **options) -> Splits:
        return load_data(source, tokenizer, ChatTemplate.of(tokenizer), max_length=max_length, **options)

    return make


def write(path: Path, *records) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def texts(tiny_model: Path, data) -> list[str]:
    tokenizer = tokenizer_from_folder(tiny_model)
    return [tokenizer.decode(data.document(i)[0].tolist()) for i in range(len(data))]


BAD = [
    ("{", "not JSON: "),
    ("[1]", 'a list where an object should be: it needs "messages", "prompt" with "completion", or "text"'),
    ("null", "null where an object should be"),
    ("[" * 100_000, "nested too deeply"),
    ('{"a": 1' + "0" * 5000 + "}", "not JSON: "),
    ("{}", "none of the known forms: .* has no keys"),
    ('{"conversations": []}', 'none of the known forms: .* has "conversations"'),
    ('{"prompt": "x"}', 'none of the known forms: .* has "prompt"'),
    ('{"text": ""}', '"text" is empty'),
    ('{"text": null}', '"text" is null: it must be a string'),
    ('{"prompt": "x", "completion": ""}', '"completion" is empty'),
    ('{"prompt": "x", "completion": []}', '"prompt" and "completion" are a string and a list: both must be'),
    ('{"messages": "hi"}', '"messages" is a string: it must be a list of messages'),
    ('{"messages": []}', '"messages" is empty'),
    ('{"messages": ["hi"]}', r"messages\[0\] is a string: it must be an object"),
    ('{"messages": [{"content": "hi"}]}', r"messages\[0\] has no role; expected one of system, developer, user"),
    ('{"messages": [{"role": "bot", "content": "hi"}]}', r'messages\[0\] has the unknown role "bot"'),
    ('{"messages": [{"role": ["user"], "content": "hi"}]}', "unknown role"),
    ('{"messages": [{"role": "user"}]}', r"messages\[0\] has no content"),
    ('{"messages": [{"role": "user", "content": 3}]}', "a number as content"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "only text is trained"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', "no message of the assistant"),
    (
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}',
        r"messages\[1\] is an empty message of the assistant",
    ),
    (
        '{"prompt": [{"role": "assistant", "content": "x"}], "completion": [{"role": "user", "content": "hi"}]}',
        '"completion" has no message of the assistant',
    ),
    ('{"messages": [{"role": "assistant", "content": "a", "tool_calls": "x"}]}', '"tool_calls" that are not a list'),
    ('{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}', r"messages\[0\] has the weight 0.5: 1 "),
    ('{"messages": [{"role": "assistant", "content": "a", "weight": true}]}', "has the weight true: 1 "),
    ('{"messages": [{"role": "assistant", "content": "a", "weight": [0]}]}', r"has the weight \[0\]: 1 "),
    ('{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', 'but with "weight" 0: there is nothing to'),
    (
        '{"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]}',
        r"messages\[0\] has weight 1, and only messages of the assistant are trained",
    ),
    ('{"text": "a", "more": ' + "[" * 600 + "]" * 600 + "}", "line 3: nested too deeply$"),
    ('{"text": "a", "more": ' + '{"a":' * 200 + "1" + "}" * 201, "line 3: nested too deeply$"),
    ('{"messages": [{"role": "assistant", "content": "a"}], "tools": {}}', '"tools" is an object: it must be a list'),
    ('{"messages": [{"role": "assistant", "content": "a"}], "tools": "{"}', '"tools" is a string that is no JSON'),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_line_is_named_by_its_file_and_number(tmp_path, load, line, words):
    path = write(tmp_path / "mine.jsonl", {"text": "fine"}, "", line)
    with pytest.raises(DataError, match=words) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} line 3: ")
    assert "\n" not in message


def test_a_line_that_is_not_utf8_and_what_the_template_refuses(tmp_path, load, tiny_model):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl line 2: not UTF-8 \(byte 11 "):
        load(path)
    write(path, {"messages": [USER, REPLY]})
    template = ChatTemplate("{{ raise_exception('no foxes') }}")
    with pytest.raises(DataError, match=r"mine.jsonl line 1: chat template: no foxes"):
        load_data(path, tokenizer_from_folder(tiny_model), template, max_length=9)


def test_forms_of_records():
    assert parse_line(b'\xef\xbb\xbf{"text": "a", "more": 1}') == Text("a")
    assert parse({"prompt": "a", "completion": "b", "text": "c"}) == Completion("a", "b")
    assert parse({"messages": [USER, REPLY], "text": "c"}) == Chat((USER, REPLY))
    assert parse({"prompt": [USER], "completion": [REPLY]}) == Chat((USER, REPLY), 1)
    assert parse({"messages": [USER, REPLY], "tools": '[{"name": "f"}]'}) == Chat((USER, REPLY), 0, [{"name": "f"}])
    assert parse({"messages": [USER, REPLY], "tools": None}) == Chat((USER, REPLY))
    parts = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert parse({"messages": [parts, REPLY]}) == Chat((parts, REPLY))


def test_keys_that_nothing_reads_are_noted_with_their_first_lines(tmp_path, load):
    odd = {f"key {i}": i for i in range(20)}
    write(tmp_path / "train.jsonl", {"text": "a", "id": 1, "no": None}, {"text": "b", "id": 2, "\x1b[2J" * 30: 1})
    write(tmp_path / "valid.jsonl", {"messages": [USER, {**REPLY, "source": "x"}], "text": "c"})
    (note,) = load(tmp_path).notes
    assert note.startswith('nothing reads "id" (train.jsonl line 1), "')
    assert note.endswith(
        '" (train.jsonl line 2), "text" (valid.jsonl line 1), "source" of messages (valid.jsonl line 1)'
    )
    assert note.isprintable()
    assert len(note) < 250
    (note,) = load(write(tmp_path / "mine.jsonl", {"text": "a", **odd}, {"text": "b", **odd})).notes
    assert note.endswith(', "key 7" (mine.jsonl line 1) and more keys')
    assert load(write(tmp_path / "mine.jsonl", {"messages": [USER, {**REPLY, "weight": 1}], "tools": []})).notes == ()


def test_calls_have_their_arguments_as_objects_and_no_empty_keys():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    record = parse({"messages": [{**USER, "tool_calls": None}, message]})
    assert isinstance(record, Chat)
    assert record.messages[0] == USER
    done = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert record.messages[1] == done
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}  # what was given is left as it was


def test_a_folder_of_splits(tmp_path, load, tiny_model):
    write(tmp_path / "train.jsonl", *({"text": f"fox {i}"} for i in range(40)))
    write(tmp_path / "validation.jsonl", {"text": "dog 1"}, {"text": "dog 2"})
    write(tmp_path / "test.jsonl", {"text": "day"})
    splits = load(tmp_path)
    assert texts(tiny_model, splits.train) == [f"fox {i}" for i in range(40)]
    assert splits.valid is not None
    assert splits.test is not None
    assert texts(tiny_model, splits.valid) == ["dog 1", "dog 2"]
    assert texts(tiny_model, splits.test) == ["day"]
    assert not splits.held_out
    assert {name: counts["documents"] for name, counts in splits.statistics().items()} == {
        "train": 40,
        "valid": 2,
        "test": 1,
    }


def test_a_seeded_share_of_one_file_is_held_out(tmp_path, load, tiny_model):
    path = write(tmp_path / "mine.jsonl", *({"text": f"fox {i}"} for i in range(40)))
    shares = [load(path, valid_fraction=0.1, seed=seed) for seed in (0, 0, 1)]
    held = []
    for share in shares:
        assert share.held_out
        assert share.valid is not None
        train, valid = texts(tiny_model, share.train), texts(tiny_model, share.valid)
        assert (len(train), len(valid)) == (36, 4)
        assert sorted(train + valid) == sorted(f"fox {i}" for i in range(40))
        held.append(valid)
    assert held[0] == held[1] != held[2]
    whole = load(path, valid_fraction=0)
    assert (len(whole.train), whole.valid, whole.held_out) == (40, None, False)
    few = load(write(tmp_path / "few.jsonl", {"text": "a"}, {"text": "b"}))
    assert (len(few.train), len(few.valid or [])) == (1, 1)
    only = load(write(tmp_path / "only.jsonl", {"text": "a"}))
    assert (len(only.train), only.valid, only.held_out) == (1, None, False)


def test_truncated_and_skipped_documents_are_counted(tmp_path, load):
    long = {"messages": [USER, {"role": "assistant", "content": "x" * 100}]}
    hopeless = {"messages": [{"role": "user", "content": "x" * 100}, REPLY]}
    path = write(tmp_path / "mine.jsonl", long, hopeless, {"messages": [USER, REPLY]})
    lengths = load(path, 1000, valid_fraction=0).train.lengths.tolist()
    data = load(path, 48, valid_fraction=0).train
    counts = data.statistics
    assert (counts.records, counts.documents, counts.skipped, counts.truncated) == (3, 2, 1, 1)
    assert counts.lost == lengths[0] - 48
    assert counts.tokens == 48 + lengths[2]
    assert counts.trained == int(data.trained.sum())
    for batch in Batches(data, 2, 48, True, 0).one_epoch():
        assert batch.trained > 0
    with pytest.raises(DataError, match=r"prompts .*`max_length`"):
        load(write(tmp_path / "long.jsonl", hopeless), 48)


def test_a_chat_that_is_split_stays_on_one_side(tmp_path, tiny_model):
    tokenizer = tokenizer_from_folder(tiny_model)
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content if m.role == 'user' or loop.last else '-' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path = write(tmp_path / "mine.jsonl", *({"messages": [USER, REPLY] * 2} for _ in range(4)))
    splits = load_data(path, tokenizer, ChatTemplate(source), max_length=99, valid_fraction=0.25)
    assert splits.valid is not None
    assert (len(splits.train), len(splits.valid)) == (6, 2)
    assert (splits.train.statistics.records, splits.train.statistics.split) == (3, 3)


PROSE = "the quick brown fox jumps\nover the lazy dog.\n" * 30


@pytest.mark.parametrize("block", [1 << 20, 50])
def test_a_text_is_cut_into_documents_and_nothing_is_lost(tmp_path, load, tiny_model, monkeypatch, block):
    monkeypatch.setattr(data_files, "BLOCK", block)
    (tmp_path / "book.txt").write_text(PROSE)
    tokenizer = tokenizer_from_folder(tiny_model)
    data = load(tmp_path / "book.txt", 32, valid_fraction=0).train
    ids = [int(data.document(0)[0][0])]
    for i in range(len(data)):
        tokens, trained = data.document(i)
        assert len(tokens) <= 32
        assert trained[1:].all()
        assert int(tokens[0]) == ids[-1]
        ids += tokens[1:].tolist()
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids[:-1], specials=True) == PROSE
    assert data.statistics.trained == len(ids) - 1
    assert (data.statistics.truncated, data.statistics.split) == (0, 0)


def test_the_end_of_a_text_is_held_out(tmp_path, load, tiny_model):
    (tmp_path / "book.txt").write_text(PROSE)
    splits = load(tmp_path / "book.txt", 2000, valid_fraction=0.2)
    assert splits.valid is not None
    (train,), (valid,) = texts(tiny_model, splits.train), texts(tiny_model, splits.valid)
    assert train + valid == PROSE
    assert splits.valid.lengths[0] == round(0.2 * (splits.valid.lengths[0] + splits.train.lengths[0]))


@given(count=st.integers(1, 60), room=st.integers(2, 12), bos=st.sampled_from([None, 99]))
def test_every_token_of_a_text_is_trained_exactly_once(count, room, bos):
    pieces = list(cut_text(range(count), room + (bos is not None), bos))
    trained = [(i, a) for ids, flags in pieces for i, flag, a in zip(ids[1:], flags[1:], ids, strict=False) if flag]
    before = [*([(0, 99)] if bos is not None else []), *((i, i - 1) for i in range(1, count))]
    assert trained == before
    assert all(len(ids) <= room + (bos is not None) and (bos is None or ids[0] == bos) for ids, _ in pieces)


def test_progress_reaches_the_end_and_never_goes_back(tmp_path, load):
    write(tmp_path / "train.jsonl", *({"text": f"fox {i}"} for i in range(9)))
    (tmp_path / "valid.txt").write_text(PROSE)
    progress: list[tuple[int, int]] = []
    load(tmp_path, on_progress=lambda done, total: progress.append((done, total)))
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {whole for _, whole in progress} == {total}
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (total, total)
    assert len(progress) > 9


def test_what_is_not_data_is_one_line(tmp_path, load):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("train.jsonl", "train.txt"):
        (tmp_path / "two" / name).write_text("x")
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name, words in {
        "empty": "holds no train.jsonl",
        "two": "holds train.jsonl and train.txt: keep one",
        "data.csv": "neither a .jsonl nor a .txt file",
        "missing": "does not exist: give a folder",
        "x\0y": "cannot be a path|does not exist",
        "x" * 5000: "cannot be a path|does not exist",
        "blank.jsonl": "holds no records",
        "blank.txt": "is empty",
        "latin.txt": r"not UTF-8 \(byte 1\)",
    }.items():
        with pytest.raises(DataError, match=words) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    path = write(tmp_path / "mine.jsonl", {"text": "a fox"})
    for options, words in [
        ({"valid_fraction": 1.0}, "`valid_fraction` must be"),
        ({"seed": -1}, "`seed` must be >= 0"),
        ({"max_length": 1}, "`max_length` must be"),
    ]:
        with pytest.raises(DataError, match=words):
            load(path, **options)


def test_the_same_again_gives_the_same_data(tmp_path, load):
    path = write(tmp_path / "mine.jsonl", *({"messages": [USER, REPLY]} for _ in range(5)), {"text": "fox"})
    assert load(path).train.fingerprint == load(path).train.fingerprint
    assert load(path).train.fingerprint != load(path, max_length=12).train.fingerprint


def test_parquet_rows_are_records(tmp_path, load, tiny_model, monkeypatch):
    """The library itself is optional and not among the test tools: one that answers like it stands in."""
    rows = [{"text": f"fox {i}"} for i in range(300)]
    damage = {"text": "bad"}

    class ParquetFile:
        def __init__(self, path):
            if path.read_bytes() != b"PAR1":
                raise ValueError("no magic")
            self.metadata = types.SimpleNamespace(num_rows=len(rows))

        def iter_batches(self, batch_size):
            for i in range(0, len(rows), batch_size):
                if rows[i] is damage:
                    raise OSError("bad\npage")
                yield types.SimpleNamespace(to_pylist=lambda i=i: rows[i : i + batch_size])

    path = tmp_path / "mine.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"mine.parquet: `pip install pyarrow`"):
        load(path)
    library = types.ModuleType("pyarrow.parquet")
    library.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", library)
    splits = load(path, valid_fraction=0.1)
    assert splits.valid is not None
    assert (len(splits.train), len(splits.valid)) == (270, 30)
    assert np.isin(texts(tiny_model, splits.train), [row["text"] for row in rows]).all()
    rows[280] = {"text": ""}
    with pytest.raises(DataError, match=r'mine.parquet row 281: "text" is empty'):
        load(path)
    rows[256] = damage
    with pytest.raises(DataError, match=r"cannot read parquet file: bad page"):
        load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot read parquet file: no magic"):
        load(path)
