"""Smaller numbers for a verified graph: int8 with calibration, float16, and weights alone in int8.

Each takes a `export.proof.Graph` and gives another, whose last step tells how far its outputs moved.
"""
