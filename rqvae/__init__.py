"""Stage 1: item text to embeddings to semantic IDs."""
