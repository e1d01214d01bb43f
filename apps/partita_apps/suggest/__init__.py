"""`partita models suggest`: which public models fit this machine's memory, from a list that the package brings."""
