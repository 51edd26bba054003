"""Teachers: frozen diffusion models behind one small protocol."""
