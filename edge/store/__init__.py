"""State of the edge behind one interface (``store.Store``): limits, quotas, revocations, API keys, invites."""
