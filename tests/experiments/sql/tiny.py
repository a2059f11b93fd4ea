"""The text-to-SQL study at its smallest: few questions, a tiny Llama with room for a schema."""

import json

from lora_np.experiments.sql.plan import SqlSettings
from lora_np.experiments.sql.task import Sizes
from tests.finetune.tiny import write_llama


def tiny_sql(folder, **changes):
    """Write a tiny model to a folder; return settings of a study of it."""
    write_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    small = {"sizes": Sizes(train=6, validation=2, test=2), "seeds": 1, "examples": 1, "r": 2}
    small |= {"top_layers": 2, "batch_size": 6, "lora_rates": (1e-3,), "full_rates": (1e-3,)}
    return SqlSettings(**{"model": str(folder), **small, "longest": 2, "answered": 4, **changes})
