"""State of the edge behind one interface (``ledger.Ledger``): limits, quotas, revocations, API keys, invites."""
