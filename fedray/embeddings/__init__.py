"""Embeddings on disk, kept under the digest of what they were made from, and shared by jobs on several machines.

    <root>/<fingerprint>-<dtype>/     one folder an encoder: rows in one folder may stand in one table
        encoder.json                  the encoder's description, written once
        segments/<name>.safetensors   key uint8 [n, 32], crc uint32 [n], value float [n, d]; never changed
        claims/<name>                 what a living process is about to encode
        uses/<name>.keys              what one user of the store (a catalogue) wants kept
        refused.jsonl                 what the encoder could not take
        .lock                         held shared by whoever has the store open, alone by a collection

A key is the SHA-256 of an item's raw bytes; a checksum covers each row and its key. Files appear under their
names whole and on the disk, or not at all, so a process may be killed anywhere. What is damaged nevertheless is
found, left out and encoded again. The locks are `flock`, which the system frees with the process, also over NFS
(version 4, or 3 with its lock daemon). There a listing may lag by seconds: an item may then be encoded twice,
which costs time and nothing else.
"""
