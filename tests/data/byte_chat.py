"""A tokenizer as small as one can be: a byte is a token, and a turn stands between two markers."""

START, END, BOS = 256, 257, 258
MARKERS = {START: "<start>", END: "<end>", BOS: "<bos>"}


class ByteChat:
    """Tokenizer of bytes; a turn is <start>role, a line end, the content, <end>, a line end."""

    ends = (END,)

    def __init__(self, bos=None):
        self.bos = bos

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        parts = (MARKERS[i].encode() if i in MARKERS else bytes([i]) for i in ids)
        return b"".join(parts).decode()

    def spans(self, messages):
        ids, spans = [], []
        for message in messages:
            ids += [START, *message["role"].encode(), 10]
            start = len(ids)
            ids += [*message["content"].encode(), END]
            if message["role"] == "assistant":
                spans.append((start, len(ids)))
            ids.append(10)
        return ids, spans
