"""GGML's block types, decoded number by number from the description of their bytes."""

import struct

import numpy as np

from lora_np.forms import BLOCKS


def random_blocks(name, n, rng):
    """Return n blocks (n, bytes) of random bytes; the scales are ordinary numbers."""
    blocks = rng.integers(0, 256, (n, BLOCKS[name].block_bytes), dtype=np.uint8)
    for start in BLOCKS[name].scales_at:
        scales = (0.05 * rng.standard_normal((n, 1))).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks


def half(block, start):
    (x,) = struct.unpack("<e", block[start : start + 2])
    return np.float32(x)


def nibble(packed, i, apart):
    """Return the number i of those that lie in the lower, then the upper halves of bytes."""
    part, i = divmod(i, 2 * apart)
    byte = packed[part * apart + i % apart]
    return byte & 15 if i < apart else byte >> 4


def q4_0(b):
    return [half(b, 0) * np.float32(nibble(b[2:], i, 16) - 8) for i in range(32)]


def q4_1(b):
    return [half(b, 0) * np.float32(nibble(b[4:], i, 16)) + half(b, 2) for i in range(32)]


def fifth(b, i):
    (h,) = struct.unpack("<I", b)
    return 16 * (h >> i & 1)


def q5_0(b):
    q = [nibble(b[6:], i, 16) + fifth(b[2:6], i) - 16 for i in range(32)]
    return [half(b, 0) * np.float32(x) for x in q]


def q5_1(b):
    q = [nibble(b[8:], i, 16) + fifth(b[4:8], i) for i in range(32)]
    return [half(b, 0) * np.float32(x) + half(b, 2) for x in q]


def q8_0(b):
    return [half(b, 0) * np.float32(q) for q in struct.unpack("<32b", b[2:])]


def scale_and_minimum(s, group):
    """As get_scale_min_k4 in ggml-quants.c."""
    if group < 4:
        return s[group] & 63, s[group + 4] & 63
    low, high = s[group + 4] & 15, s[group + 4] >> 4
    return low | (s[group - 4] >> 6) << 4, high | (s[group] >> 6) << 4


def in_groups(b, q):
    found = []
    for i in range(256):
        s, least = scale_and_minimum(b[4:16], i // 32)
        d, m = half(b, 0) * np.float32(s), half(b, 2) * np.float32(least)
        found.append(d * np.float32(q(i)) - m)
    return found


def q4_k(b):
    return in_groups(b, lambda i: nibble(b[16:], i, 32))


def q5_k(b):
    return in_groups(b, lambda i: nibble(b[48:], i, 32) + 16 * (b[16 + i % 32] >> i // 32 & 1))


def q6_k(b):
    found = []
    for i in range(256):
        part, j = divmod(i, 128)
        low = nibble(b[64 * part :], j, 64)
        high = b[128 + 32 * part + j % 32] >> 2 * (j // 32) & 3
        (s,) = struct.unpack("<b", b[192 + i // 16 : 193 + i // 16])
        found.append(half(b, 208) * np.float32(s) * np.float32(low + 16 * high - 32))
    return found


NAIVE = {
    **{"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0},
    **{"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k},
}


def permuted_head_by_head(W, n_head):
    """The rows of queries or keys in a GGUF file: rows i and i + d/2 of a head are neighbours."""
    d = len(W) // n_head
    order = [h * d + i + j * (d // 2) for h in range(n_head) for i in range(d // 2) for j in (0, 1)]
    return np.array([W[row] for row in order])
