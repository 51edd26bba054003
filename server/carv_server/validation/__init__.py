"""From messages to checked requests: every violation of a request at once."""
