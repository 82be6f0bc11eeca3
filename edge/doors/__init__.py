"""Doors: one file per way to be let in. Each has ``enter(...) -> Principal``, or raises an ApiError that says why.

anonymous, invite, api_key, oidc, cloudflare_access, tailnet, user_id    the doors
credentials, pages                                                       what a request shows, and where its page is
jwt, jwks, issuers, grants                                               what doors ask: tokens and keys of others
"""
