"""What several test folders share: the oracle teacher and servers in their own process."""
