"""Query/Retrieve over what the node holds (PS3.4 Annex C).

::

    identifier.py  the bytes of a request → its keys, or why it is refused
    matching.py    a key's value → conditions for the ledger
    sequences.py   the same of keys within sequences
    find.py        C-FIND                     answers.py   what is told of an entity
    retrieve.py    C-MOVE and C-GET           objects.py   files in a transfer syntax that the receiver takes
    suboperations.py  their C-STOREs          replies.py   responses, sent as they arise
    indexer.py     reads what came before there was an index
    conformance.py the section of docs/conformance.md
"""
