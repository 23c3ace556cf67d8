"""docs/conformance.md: the parts of it that are written from the code (PS3.2)."""
