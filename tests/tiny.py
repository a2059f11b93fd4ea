"""Sizes of a sweep on text that takes a second."""

TINY = {
    "pretrain_steps": 3,
    "steps": 3,
    "batch_size": 4,
    "block_size": 16,
    "d_model": 16,
    "n_layer": 1,
    "n_head": 2,
    "windows": 2,
}
