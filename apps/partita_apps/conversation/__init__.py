"""A conversation with a model, whoever shows it: its messages, settings, adapters, files and what a reply cost."""
