"""What the data of a job is like, looked at before workers are taken: content, not only format.

NumPy and the readers of ``workers/sources``, no torch.

run.py chooses by kind: images.py, tables.py, texts.py, tokens.py, chains.py; labels.py and duplicates.py are for several of them.
control.py is the controller's side.
"""
