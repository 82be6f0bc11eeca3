"""What callers of ``POST /api/chat`` said and were told, each principal's apart from all others'."""
