"""The dialects that clients speak, each a module: bodies in, one `Ask`; its events out, as JSON or as a stream."""
