"""Each file prints its ratio against the stock way of doing the same work."""
