"""Mending a run that fails, while it trains: with consent, within a budget, agreed by all ranks, told, and undoable."""
