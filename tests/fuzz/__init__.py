"""Inputs that no sane peer would send: `make fuzz`.

::

    __main__.py    the campaigns one after the other, the report
    traffic.py     valid traffic, captured between a client and the node: what is mutated
    mutations.py   hypothesis strategies: bytes, PDUs, command sets, data sets
    target.py      the node as a process of its own, and what must not change of it
    campaigns.py   what is fuzzed and what counts as a failure
    hunt.py        many inputs in pieces; a failing one is shrunk and saved in found/
    found/         inputs that once failed: tests/dicomnode/test_fuzz.py sends each of them again
"""
