"""The public side: who are you, how much may you, which node. It knows nothing of prompts or models' quirks."""
