"""Which models there are, under which names, which of them are in memory, and what is added to requests for them."""
