"""Programs of the peers' environments, run by path: ``work`` is what they serve, each ``serve_*``
is one peer. Nothing of CARV is imported here."""
