"""The chapters that a browser cannot run, and why: the course and the docs leave them out by name."""

NOT_HERE = {
    "13_a_real_language_model.ipynb": "its tokenizer, the package tokenizers, has no form for browsers",
}
