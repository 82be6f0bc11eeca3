"""The text that the demo model learns from: conversations made by a grammar over a small world of dishes, places and
things to do. Nothing is taken from elsewhere, and the same seed gives the same text. Standard library only."""
