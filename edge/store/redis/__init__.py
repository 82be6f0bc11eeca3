"""The store of many edges: counted by scripts in a Redis or Valkey server, version 7 or later."""
