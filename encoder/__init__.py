"""The encoder: loading, [CLS] attention, gates, dropout, what a pruning search caches."""
