"""Item text to vectors: cleaned texts on disk, the encoder, and parts that survive a kill."""
