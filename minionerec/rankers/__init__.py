"""Everything that ranks a catalogue for a history and is no language model."""
