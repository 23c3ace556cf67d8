"""Who did what with whose data (PS3.15 A.5)."""
