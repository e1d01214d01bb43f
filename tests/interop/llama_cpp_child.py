"""A child process of `test_llama_cpp.py`, run by a Python that has llama-cpp-python: logits of a GGUF file.

Arguments: the file, the context in tokens, an .npy of logits to write. Standard input: JSON, {"tokens", "texts"}.
Standard output: JSON, the ids of each text.
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
    logits = []
    if asked["tokens"]:
        model.eval(asked["tokens"])
        logits = model.scores[: len(asked["tokens"])]
    np.save(out, np.array(logits, np.float32))
    print(json.dumps([model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]))


main()
