"""What the command line does, one module a command; `__main__` is their list."""
