"""The server: one port on the loopback for every tool on this machine; a child process for each loaded model."""
