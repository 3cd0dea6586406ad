"""Fault injection: small jobs on real data, sick in one known way or healthy in spite of their looks, to judge the rules by.

case <- cases/* (what is trained) <- loop (trains it) <- recording (what a run leaves) <- judging (what the rules make of it) <- scoring.
"""
