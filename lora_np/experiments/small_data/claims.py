"""What is said of LoRA on little data, and whether our numbers support it."""

from __future__ import annotations

from lora_np.experiments.claims import Claim, differences, lies_within, measured
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses

SAID = "said of LoRA"


def label(name: str, tokens: int) -> str:
    """Return the label of a method at a length of the text."""
    return f"{name}, {tokens:,} bytes"


def gap(results: Results, name: str, tokens: int) -> dict[int, float]:
    """Return by seed how far the validation loss lies above the train loss."""
    at = label(name, tokens)
    train = losses(results, at, key="train_loss")
    held_out = losses(results, at, key="validation_loss")
    return {seed: held_out[seed] - train[seed] for seed in train}


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    least, *_, most = results["settings"]["tokens"]
    equal = SAME * results["base_test_loss"]  # losses no further apart count as equal
    test = {
        (name, n): losses(results, label(name, n))
        for name in ("LoRA", "full")
        for n in (least, most)
    }
    little = differences(test["full", least], test["LoRA", least])
    much = differences(test["LoRA", most], test["full", most])
    gaps = {(name, n): gap(results, name, n) for name in ("LoRA", "full") for n in (least, most)}
    overfit = differences(gaps["full", least], gaps["LoRA", least])
    grows = differences(gaps["LoRA", least], gaps["LoRA", most])
    return [
        Claim(
            SAID,
            "it is better than full fine-tuning on little data",
            f"full's test loss less LoRA's is above 0 at {least:,} bytes",
            measured(little),
            lies_within(little, low=equal),
        ),
        Claim(
            SAID,
            "full fine-tuning is better on much data",
            f"LoRA's test loss less full's is above 0 at {most:,} bytes",
            measured(much),
            lies_within(much, low=equal),
        ),
        Claim(
            SAID,
            "it overfits less than full fine-tuning",
            f"validation less train loss at {least:,} bytes is larger for full than for LoRA",
            measured(overfit),
            lies_within(overfit, low=equal),
        ),
        Claim(
            SAID,
            "it overfits too, if the text is short",
            f"LoRA's validation less train loss is larger at {least:,} bytes than at {most:,}",
            measured(grows),
            lies_within(grows, low=equal),
        ),
    ]
