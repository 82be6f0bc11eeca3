"""The node's routes, each a short story over the leaves."""
