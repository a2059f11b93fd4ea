"""Adapters as files: made smaller, taken from checkpoints, merged into them, combined."""
