"""The nodes that this edge can ask: which machines they are on, the links to each, and why there is none."""
