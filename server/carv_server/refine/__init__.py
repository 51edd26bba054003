"""RefineGradient: the streams of a render, their blocks, and the call."""
