"""Mending a run that fails, while it trains or from its start: with consent, within a budget, agreed by all ranks, told, and undoable."""
