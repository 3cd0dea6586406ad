"""What language models are made of: tokenizers, blocks of tokens, the loss, samples."""
