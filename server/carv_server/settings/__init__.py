"""Flags, environment and file to checked settings. Free of torch, so that mistakes are told at
once."""
