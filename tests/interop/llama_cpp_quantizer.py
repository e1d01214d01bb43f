"""A child process of `test_llama_cpp.py`, run by a Python that has llama-cpp-python: llama.cpp's quantizer.

Arguments: a GGUF file, the file to write, llama.cpp's number of a file type, and, if errors are to be weighed, an .npz
of what columns are multiplied by, by tensors' names.
"""

import ctypes
import sys

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    source, target, number = sys.argv[1:4]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(number), 1
    kept = []
    if len(sys.argv) > 4:
        given = np.load(sys.argv[4])
        kept = [(name.encode(), np.ascontiguousarray(given[name], np.float32)) for name in given]
        array = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()  # ends with one without a name
        for entry, (name, values) in zip(array, kept):  # noqa: B905
            entry.name, entry.size = name, values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    sys.exit(code)


main()
