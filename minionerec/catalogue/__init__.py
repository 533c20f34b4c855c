"""Items, samples, semantic IDs, trie, prompts."""
