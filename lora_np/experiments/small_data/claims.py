"""What is said of LoRA on little data, and whether our numbers support it."""

from __future__ import annotations

from lora_np.experiments.claims import Claim, differences, lies_within, measured
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses

SAID = "said of LoRA"
NAMES = ("LoRA", "full")


def label(name: str, tokens: int) -> str:
    """Return the label of a method at a length of the text."""
    return f"{name}, {tokens:,} bytes"


def overfit(results: Results, name: str, tokens: int) -> dict[int, float]:
    """Return by seed how far training opened a gap between validation and train loss.

    At the rate that all lengths have in common. The base has a gap too, since one text is harder
    than another; it is taken off.
    """
    at, lr = label(name, tokens), results["settings"]["common_lr"][name]
    train = losses(results, at, lr, "train_loss")
    held_out = losses(results, at, lr, "validation_loss")
    before = results["base_validation_loss"] - results["base_train_losses"][str(tokens)]
    return {seed: held_out[seed] - train[seed] - before for seed in train}


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    least, *_, most = results["settings"]["tokens"]
    equal = SAME * results["base_test_loss"]  # losses no further apart count as equal
    test = {(name, n): losses(results, label(name, n)) for name in NAMES for n in (least, most)}
    little = differences(test["full", least], test["LoRA", least])
    much = differences(test["LoRA", most], test["full", most])
    more = differences(overfit(results, "full", least), overfit(results, "LoRA", least))
    grows = differences(overfit(results, "LoRA", least), overfit(results, "LoRA", most))
    gap = "the gap that training opens between validation and train loss"
    return [
        Claim(
            SAID,
            "it is better than full fine-tuning on little data",
            f"full's test loss less LoRA's, each at its best rate, is above 0 at {least:,} bytes",
            measured(little),
            lies_within(little, low=equal),
        ),
        Claim(
            SAID,
            "full fine-tuning is better on much data",
            f"LoRA's test loss less full's, each at its best rate, is above 0 at {most:,} bytes",
            measured(much),
            lies_within(much, low=equal),
        ),
        Claim(
            SAID,
            "it overfits less than full fine-tuning",
            f"{gap} at {least:,} bytes, at one rate for all lengths, is larger for full",
            measured(more),
            lies_within(more, low=equal),
        ),
        Claim(
            SAID,
            "it overfits too, if the text is short",
            f"{gap} for LoRA, at one rate for all lengths, is larger at {least:,} bytes than at "
            f"{most:,}",
            measured(grows),
            lies_within(grows, low=equal),
        ),
    ]
