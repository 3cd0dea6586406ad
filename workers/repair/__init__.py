"""Repairs of a model: changes of any tree of modules, kept as a list of patches that makes the same model again on every rank.

proposals look at one forward pass (tracing) and name patches; patches are checked against the tree alone (anatomy) and carried out.
"""
