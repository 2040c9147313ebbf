"""Bulk work: rows of a table in, a file for each out, by many processes or machines, resumable after anything.

    rows -> what is not done yet, longest first -> workers (slots, processes, Ray) -> journal -> manifest, failed rows

What is done to a row is a `Work` (`speech`, `coding`); everything else is the same for all kinds. See docs/batch.md.
"""
