"""``carv bench serving``: what the service adds to a teacher's forward.

``desk`` starts servers and measures cells in interleaved rounds; ``overhead``, ``scheduling``,
``arrivals`` and ``model`` are its parts; ``run`` goes through them.
"""
