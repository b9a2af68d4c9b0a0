"""The embedded default: a toy world with a known answer, and a tiny CLIP that was pre-trained on it."""
