"""Rankers that know nothing of semantic IDs, on the same samples and the same metrics as the language model."""
