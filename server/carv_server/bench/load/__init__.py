"""Load on servers from processes of its own: what the serving benchmark and that of the peers
share. Imports neither torch nor the server, so that a driver starts at once."""
