"""A case -> findings, in a process that can be killed, here or on a cluster."""
