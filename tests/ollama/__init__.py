"""A real Ollama, built from its Go module, and what the node makes of it."""
