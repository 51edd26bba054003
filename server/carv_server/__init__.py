"""The CARV teacher server."""
