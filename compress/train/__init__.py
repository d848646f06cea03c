"""Training with sparsity penalties: from a recipe to a run directory.

``config`` and ``recipe`` say what is to be done, ``loop`` does it, ``session`` strings a whole run together, and
``rundir`` opens what it left behind. Nothing is imported here: reading a recipe does not need torch.
"""
