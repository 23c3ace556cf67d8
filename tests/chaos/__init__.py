"""Faults on a whole site, and what must hold after each: `make chaos`.

::

    __main__.py   the episodes in random order, the journal that a broken run goes on from, the report
    site.py       one node, one Orthanc, modalities that send until all is acknowledged
    kills.py      `kill -9` at a moment of a case's life
    disk_full.py  the disk of data_dir without room
    outages.py    PACS down, silent, rejecting, cutting off
    verdict.py    what must hold: nothing lost, nothing twice, nothing stuck, nothing half-made
    report.py     the table

Every process is a real one; senders are DCMTK's storescu.
"""
