"""Texts, byte tokens, and batches of tokens."""

from lora_np.data.batches import Batches
from lora_np.data.rows import RowsOfBatch
from lora_np.data.texts import (
    VOCAB_SIZE,
    DataError,
    Splits,
    decode,
    encode,
    language_reference,
    read_text,
    sample_batch,
    split,
    standard_library,
    windows,
)

__all__ = [
    "VOCAB_SIZE",
    "Batches",
    "DataError",
    "RowsOfBatch",
    "Splits",
    "decode",
    "encode",
    "language_reference",
    "read_text",
    "sample_batch",
    "split",
    "standard_library",
    "windows",
]
