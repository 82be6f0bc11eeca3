"""Prefixes that let a secret scanner name what leaked, and whose it is."""

API_KEY = "hlk_"
TOKEN = "hlt_"
INVITE = "hli_"
NODE_TOKEN = "hln_"
