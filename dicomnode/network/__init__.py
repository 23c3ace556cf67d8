"""Associations: the port, who may open one, what goes over it, and those that we open ourselves."""
