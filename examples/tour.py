"""A tour of partita in Python, in cells: load, stream, logits, a session and its cache, LoRA. Run it, or open it in an
editor that knows `# %%`. With the default model it takes less than a minute.
"""

# %% Load the default model (or a folder, a .gguf file, "owner/name")
import tempfile
from pathlib import Path

import partita

model = partita.load()
print(model)

# %% Stream a reply
for piece in partita.generate(model, "What is the capital of France?", max_tokens=20):
    print(piece.text, end="", flush=True)
print()

# %% Scores of the next token: float32 (T, V)
ids = model.encode("The capital of France is", raw=True)
scores = partita.logits(model, ids)
best = scores[-1].argsort()[::-1][:3]
print(scores.shape, [model.tokenizer.decode([int(token)]) for token in best])

# %% A session keeps its cache: the second turn reads only what is new
session = model.session(context=512)
messages = [{"role": "user", "content": "Name a colour."}]
reply = "".join(piece.text for piece in partita.chat(model, messages, session=session, max_tokens=16, seed=0))
messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "Another one."}]
reply = "".join(piece.text for piece in partita.chat(model, messages, session=session, max_tokens=16, seed=0))
print(reply)
print(f"{session.reused} tokens were in the cache, which takes {session.cache.nbytes:,} bytes")

# %% Save it, and go on in another one
with tempfile.TemporaryDirectory() as folder:
    session.save(Path(folder) / "talk")
    other = model.session(context=512)
    other.restore(Path(folder) / "talk")
    print(len(other.tokens), "tokens are back")

# %% LoRA: an adapter out of a few records, beside the weights
records = [{"prompt": "Say it.", "completion": "One score, any instrument."}] * 8
with tempfile.TemporaryDirectory() as folder:
    report = partita.finetune(None, records, out=Path(folder) / "run", steps=4, rank=4, max_length=48, valid_fraction=0)
    print(f"loss {report.train_loss[0][1]:.2f} → {report.train_loss[-1][1]:.2f}")
    adapted = partita.load(adapter=report.adapter)
    print("".join(piece.text for piece in partita.generate(adapted, "Say it.", max_tokens=8)))
