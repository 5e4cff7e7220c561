"""Between text and token ids: tokenizer, chat template, grammars, sampling, and what the model's folder says."""
