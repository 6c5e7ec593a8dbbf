"""What is learned: predictors, tokens, recovery. Iterables of tensors in, learned files out."""
