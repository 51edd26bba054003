"""Text-to-3D through a CARV server: ``carv demo``.

A frozen teacher runs in a server process of its own; this package holds the other side: a small
explicit field, a differentiable volume renderer, cameras in the teacher's convention, the
optimisation at a budget of measured compute, and the report. Importing it loads neither torch
nor diffusers; ``command`` is the only module that the command line needs at start.
"""
