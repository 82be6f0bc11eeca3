"""The GPU side: prompts, models, slots. It knows a caller only as an opaque id, and only the tailnet can reach it."""
