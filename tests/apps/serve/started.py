"""`partita serve` in a process of its own, as people start it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[..., "Running"]


class Running:
    """A server that was started with some arguments."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        command = [sys.executable, "-m", "partita_apps.cli", "serve", *arguments]
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2] or 0)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            given = {"content-type": "application/json", **headers} if body is not None else headers
            connection.request(method, path, None if body is None else json.dumps(body), given)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def chat(self, **more: Any) -> str:
        body = {"messages": [{"role": "user", "content": "the quick"}], "max_tokens": 4, "temperature": 0, **more}
        status, text = self.ask("POST", "/v1/chat/completions", body)
        assert status == 200, text
        return json.loads(text)["choices"][0]["message"]["content"]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)
