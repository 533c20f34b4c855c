"""Stage 0: raw or tabular data to items, interactions and a split."""
