"""`partita inspect`: what a file or folder holds, without loading a weight."""
