"""`partita clients`: how tools are pointed at this machine's server, with its address, model and context."""
