"""Storage commitment (PS3.4 Annex J), as SCU after delivery and as SCP for those who send to us."""
