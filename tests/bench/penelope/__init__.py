"""Reference runs with PENELOPE (pyPenred), for validation only; see README.md here."""
