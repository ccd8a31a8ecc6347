"""Training: data, the demo's model, the run's configuration, the methods under one budget, and the run itself.

Submodules are imported where they are used; `config`, `data` and `files` need neither torch nor transformers.
"""
