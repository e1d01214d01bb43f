"""GGUF files out: metadata, vocabulary, block types, and the file itself."""
