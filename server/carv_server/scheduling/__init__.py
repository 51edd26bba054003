"""The scheduler's parts: what is owed to whom, what a microbatch costs, when to wait for more."""
