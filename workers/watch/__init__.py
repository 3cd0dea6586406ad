"""Watching backpropagation: what is known before the first step, what is measured while it trains, and what follows from both.

facts -> record <- probes, ranks; rules read the record alone, so that any run that was recorded can be judged, also long after.
"""
