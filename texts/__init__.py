"""Tables of text, data sets, and batches of tokens."""
