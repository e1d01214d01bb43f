"""A child process of `llama_cpp_peer.py`, run by a Python that has llama-cpp-python: logits of a GGUF file.

Arguments: the file, the context in tokens, an .npy of logits to write. Standard input: JSON, {"tokens", "count" of
those of the largest logits that are to follow, "texts"}. Standard output: JSON, {"tokens": all, "texts": ids of each}.
"""

import json
import sys

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    path, context, out = sys.argv[1:4]
    asked = json.load(sys.stdin)
    model = llama_cpp.Llama(
        path,
        n_ctx=int(context),
        n_batch=512,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    tokens, logits = asked["tokens"], []
    if tokens:
        model.eval(tokens)
        for _ in range(asked.get("count", 0)):
            tokens.append(int(model.scores[len(tokens) - 1].argmax()))
            model.eval(tokens[-1:])
        logits = model.scores[: len(tokens)]
    np.save(out, np.array(logits, np.float32))
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked.get("texts", ())]
    print(json.dumps({"tokens": tokens, "texts": ids}))


main()
