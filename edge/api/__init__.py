"""The edge's routes, each a short story over the leaves."""
