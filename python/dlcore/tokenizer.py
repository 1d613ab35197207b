"""The tokenizer of a model folder: encode, chat template, incremental decode."""
