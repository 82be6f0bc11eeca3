"""The edge–node link (design §3.8): a pure frame codec and one asyncio session used on both sides."""

SUBPROTOCOL = "hearthlink.v1"
PROTOCOL_VERSION = 1
