"""Draws endless.png from up to three documents of `partita eval --json`, given as label=file.

partita eval MODEL TEXT --context 1024 --sinks 4 --max-tokens 20480 --json > four.json
partita eval MODEL TEXT --context 1024 --sinks 0 --max-tokens 20480 --json > none.json
python docs/images/endless.py "sinks re-anchored"=four.json "no sinks"=none.json
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

COLOURS = ("#4c72b0", "#55a868", "#c44e52")

figure, axes = pyplot.subplots(figsize=(8, 3.6))
for argument, colour in zip(sys.argv[1:], COLOURS, strict=False):
    label, file = argument.split("=")
    segments = json.loads(Path(file).read_text())["segments"]
    ends, values = [part["end"] for part in segments], [part["perplexity"] for part in segments]
    axes.plot(ends, values, "o-", label=label, color=colour)
axes.axvline(1024, color="#999999", linewidth=1, linestyle=":")
axes.annotate("the cache is full", (1024, 1), xytext=(6, 4), textcoords="offset points", color="#777777", fontsize=9)
axes.set(xlabel="tokens read, cache of 1,024", ylabel="perplexity of the last 2,048", ylim=(0, None), xlim=(0, None))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(Path(__file__).with_name("endless.png"), dpi=110)
