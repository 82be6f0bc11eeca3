"""Models from a hub, on a shelf of this machine: named, pulled, checked, listed, removed."""
