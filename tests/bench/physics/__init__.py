"""The sections of docs/physics.md, one module each; see `tests.bench.physics_validation`."""
