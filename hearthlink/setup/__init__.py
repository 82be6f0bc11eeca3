"""``hearthlink setup``: put an edge behind something that is here already. One module for each."""
