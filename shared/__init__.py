"""What edge and node have in common. Imports neither."""

__version__ = "0.1.0"
