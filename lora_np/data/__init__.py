"""Texts, byte tokens, batches of tokens; a file of your own, made into samples and batches."""

from lora_np.data.batches import Batches
from lora_np.data.packing import Epochs, Sample, packed, padded
from lora_np.data.record_split import RecordSplit, split_records
from lora_np.data.records import Record, data_hash, read_records
from lora_np.data.rows import RowsOfBatch
from lora_np.data.samples import (
    SampleReport,
    SampleTokenizer,
    histogram,
    sample_text,
    samples_of,
)
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
    "Record",
    "RecordSplit",
    "RowsOfBatch",
    "Sample",
    "SampleReport",
    "SampleTokenizer",
    "Splits",
    "data_hash",
    "decode",
    "encode",
    "histogram",
    "language_reference",
    "packed",
    "padded",
    "read_records",
    "read_text",
    "sample_batch",
    "sample_text",
    "samples_of",
    "split",
    "split_records",
    "standard_library",
    "windows",
]
