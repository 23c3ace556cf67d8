"""The numbers: pure functions on volumes. No network, no database, no clock, no globals."""
