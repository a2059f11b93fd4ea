"""Prompt and prefix tuning against PEFT in transformers' GPT-2: logits, gradients, generation."""

import numpy as np
import pytest

from lora_np import PrefixConfig, PromptConfig, inject, load_adapter, load_gpt2, save_adapter
from lora_np.methods import adapters
from lora_np.parameters import Grads

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # PEFT's
]

D, LAYERS, VOCAB, N, T = 16, 3, 31, 4, 7
METHODS = {
    "prompt": (PromptConfig(N), "PromptTuningConfig", {}),
    "prefix": (PrefixConfig(N), "PrefixTuningConfig", {}),
    "prefix with the MLP": (
        PrefixConfig(N, prefix_projection=True, encoder_hidden_size=5),
        "PrefixTuningConfig",
        {"prefix_projection": True, "encoder_hidden_size": 5},
    ),
}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def make(torch, tmp_path):
    """Makes a tiny GPT-2 in float64 whose every parameter is random, the same every time."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=N + T + 3, n_embd=D, n_layer=LAYERS, n_head=4,
        layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip

    def made():
        torch.manual_seed(1)
        model = transformers.GPT2LMHeadModel(config).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
        return model

    made().save_pretrained(tmp_path / "base")
    return made


@pytest.fixture
def both(torch, tmp_path, make):
    """Returns our model and PEFT's for a method, with the same random Parameters, in float64."""
    import peft

    def pair(method):
        config, name, options = METHODS[method]
        options = {"num_virtual_tokens": N, "task_type": "CAUSAL_LM", **options}
        theirs = peft.get_peft_model(make(), getattr(peft, name)(**options)).double().eval()
        ours = inject(load_gpt2(tmp_path / "base", np.float64), config, np.random.default_rng(0))
        rng = np.random.default_rng(2)
        with torch.no_grad():
            for our, their in twins(ours, theirs):
                value = rng.standard_normal(tuple(their.shape))
                their.copy_(torch.from_numpy(value))
                for p, columns in split(our, value):
                    p.value = columns.copy()
        return ours, theirs

    return pair


def twins(ours, theirs):
    """Yield our Parameters, and the one of PEFT that holds them side by side or stacked."""
    encoder, layers = theirs.prompt_encoder["default"], list(adapters(ours).values())
    if hasattr(encoder, "transform"):
        lower, upper = encoder.transform[0], encoder.transform[2]
        yield [layers[0].E], encoder.embedding.weight
        yield [layers[0].W1], lower.weight
        yield [layers[0].b1], lower.bias
        yield [layer.W2 for layer in layers], upper.weight
        yield [layer.b2 for layer in layers], upper.bias
    else:
        yield [layer.P for layer in layers], encoder.embedding.weight


def split(ours, value):
    """Return each of our Parameters with its part of PEFT's array."""
    axis = 1 if ours[0].shape[0] == value.shape[0] and value.ndim > 1 else 0
    return list(zip(ours, np.split(value, len(ours), axis=axis)))


@every_method
def test_logits_and_gradients_are_pefts(torch, rng, both, method):
    ours, theirs = both(method)
    tokens, targets = rng.integers(0, VOCAB, (2, 2, T))
    loss, cache = ours.loss(tokens, targets)
    grads = Grads()
    ours.backward(1.0, cache, grads)
    logits = theirs(input_ids=torch.from_numpy(tokens)).logits[:, -T:]
    their_loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), torch.from_numpy(targets).reshape(-1)
    )
    their_loss.backward()
    found, expected = ours.forward(tokens)[0], logits.detach().numpy()
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()
    assert abs(float(loss) - their_loss.item()) < 1e-12 * abs(their_loss.item())
    checked = 0
    for our, their in twins(ours, theirs):
        gradient = their.grad.numpy()
        size = np.abs(gradient).max()
        assert size > 1e-4
        for p, part in split(our, gradient):
            assert np.abs(grads[p] - part).max() < 1e-12 * max(1.0, size)
            checked += 1
    trainable = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.size for p in ours.parameters().values() if p.trainable) == trainable
    assert checked == len(grads)


@every_method
def test_greedy_generation_is_pefts_one_token_at_a_time(torch, rng, both, method):
    # Not their generate(): with this transformers it hands PEFT's keys on under a name not read.
    ours, theirs = both(method)
    text = torch.from_numpy(rng.integers(0, VOCAB, (2, T - 3)))
    found = ours.generate(text.numpy(), 6, temperature=0)
    with torch.no_grad():
        for _ in range(6):
            newest = theirs(input_ids=text).logits[:, -1].argmax(dim=1, keepdim=True)
            text = torch.cat((text, newest), dim=1)
    np.testing.assert_array_equal(found, text.numpy())


def logits_of(torch, model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens)).logits[:, -T:].numpy()


@every_method
def test_a_file_of_pefts_is_read_with_its_outputs(torch, rng, tmp_path, both, method):
    _, theirs = both(method)
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = rng.integers(0, VOCAB, (2, T))
    expected = logits_of(torch, theirs, tokens)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-6)):
        again = load_adapter(load_gpt2(tmp_path / "base", dtype), tmp_path / "theirs")
        found = again.forward(tokens)[0]
        assert found.dtype == dtype
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@every_method
def test_a_file_of_ours_in_float32_is_read_by_peft(torch, rng, tmp_path, make, both, method):
    import peft

    ours, _ = both(method)
    save_adapter(ours, tmp_path / "ours", dtype=np.float32, peft_only=True)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "ours")
    tokens = rng.integers(0, VOCAB, (2, T))
    expected = logits_of(torch, theirs.double().eval(), tokens)
    assert np.abs(ours.forward(tokens)[0] - expected).max() < 2e-6 * np.abs(expected).max()
