"""The language model and the constrained search over the catalogue."""
