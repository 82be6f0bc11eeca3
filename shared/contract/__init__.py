"""Contract v1: wire types, errors and the SSE codec. Standard library and pydantic only, no I/O."""

CONTRACT_VERSION = 1
