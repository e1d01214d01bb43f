"""The page at the server's address: HTML, style and modules that are served as they are (`static`), nothing made."""
