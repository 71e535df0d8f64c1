"""Text to tokens to batches: corpus, tokenizer, indexed dataset, sampler."""
