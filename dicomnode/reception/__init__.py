"""From the bytes of a C-STORE to a durable file and a row in the ledger."""
