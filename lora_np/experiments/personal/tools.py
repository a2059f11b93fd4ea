"""The tools for a language model: adapters are trained on conversations, and asked in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.experiments.asking import (
    adapter_of,
    answer_losses,
    answers,
    chat_samples,
    expect_trainable,
    longest_answer,
)
from lora_np.experiments.personal.plan import Plan
from lora_np.experiments.personal.run import Tools
from lora_np.experiments.personal.samples import samples_of
from lora_np.experiments.personal.tasks import Sample


def tools_for(plan: Plan, base: Any, tokenizer: Any) -> Tools:
    """Return what a plan needs of a language model.

    Parameters
    ----------
    plan : Plan
    base : LanguageModel
    tokenizer : lora_np.pretrained.Tokenizer

    Raises
    ------
    ValueError
        If a sample of the plan is longer than the model's context, or the settings of its training
        do not fit the model.
    """
    expect_trainable(base, plan.training)
    splits = samples_of(plan).values()
    every = [sample for own in splits for samples in own for sample in samples]
    longest = longest_answer(chat_samples(every, tokenizer, base))

    def train(base: Any, samples: Sequence[Sample], validation: Sequence[Sample]) -> Any:
        return adapter_of(base, tokenizer, samples, validation, plan.training)

    def losses(model: Any, samples: Sequence[Sample]) -> np.ndarray:
        return answer_losses(model, chat_samples(samples, tokenizer, base))

    def answer(model: Any, prompts: list[str]) -> list[str]:
        return answers(model, tokenizer, prompts, longest)

    return Tools(train, losses, answer)
