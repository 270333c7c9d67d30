"""One module per embedded backbone: `build(assets)` returns the untrained model and its tokenizer."""
