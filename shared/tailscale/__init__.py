"""What Hearthlink asks of tailscaled, over its LocalAPI.

``client.LocalClient`` asks one thing at a time, ``tailnet.Tailnet`` watches and holds what is true now. Everything
that comes back is a frozen dataclass, read leniently: the LocalAPI is of version 0 and says so. Read from tailscale
v1.102.3 and run against v1.102.5. Standard library and httpx2 only.
"""
