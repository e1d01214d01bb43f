"""Fine-tuning on this machine, for the page: data, runs in a process of their own, adapters that become models."""
