"""How runtimes speak their answers, one file per API: read for what has to be known, made into what callers may see."""
