"""A tokenizer as small as one can be: a byte is a token, and a turn stands between two markers."""

START, END, BOS = 256, 257, 258


class ByteChat:
    """Tokenizer of bytes; a turn is <start>role, a line end, the content, <end>, a line end."""

    ends = (END,)

    def __init__(self, bos=None):
        self.bos, self.add_bos = BOS, bos is not None

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < START).decode(errors="replace")

    def spans(self, messages, last=False):
        ids, spans = [], []
        for message in messages:
            ids += [START, *message["role"].encode(), 10]
            start = len(ids)
            ids += [*message["content"].encode(), END]
            if message["role"] == "assistant":
                spans.append((start, len(ids)))
            ids.append(10)
        return ids, spans[-1:] if last else spans
