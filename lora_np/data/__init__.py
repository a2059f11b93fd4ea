"""Texts, byte tokens, batches of tokens; samples with a mask, packed into batches."""

from lora_np.data.batches import Batches
from lora_np.data.packing import Epochs, Sample, packed, padded
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
    "Epochs",
    "RowsOfBatch",
    "Sample",
    "Splits",
    "decode",
    "encode",
    "language_reference",
    "packed",
    "padded",
    "read_text",
    "sample_batch",
    "split",
    "standard_library",
    "windows",
]
