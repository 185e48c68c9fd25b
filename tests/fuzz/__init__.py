"""Hostile input at random, from seeds: damaged snapshots and checkpoints, hostile rows, text and images.

`python -m fuzz` in tests/ runs it (`make fuzz`), tests/test_fuzz.py a part of it. Nothing is mocked: snapshots reach the
teacher through its exchange, checkpoints the command that continues a run, raw files the preparation.
"""
