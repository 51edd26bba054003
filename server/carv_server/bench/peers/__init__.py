"""``carv bench peers``: the same denoising behind CARV and behind other model servers.

``scripts`` runs in the peers' own environments; ``registry`` says how each peer is installed,
started and asked; ``contender`` starts one; ``rounds`` measures them in turn; ``report`` writes
tables, figures and the document.
"""
