"""From a checkpoint to recommendations that people use: Python, files, a server, exports."""
