"""Base models: where from, how loaded, facts about architectures."""
