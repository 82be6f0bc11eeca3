"""The store of one edge: counters in memory, kept in an SQLite file."""
