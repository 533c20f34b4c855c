"""Quantisers: embeddings ``(N, D)`` to L codes per item."""
