"""The command line: the top floor. It may import edge and node, where a verb needs them; nobody imports it."""
