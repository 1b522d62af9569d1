"""The documents: models, schema, rules, and the pure reconcilers over them.

Read a directory with `loading.load_directory`, decide with `reconcile.plan`, carry out what `actions.diff` lists.
Readers of the registry get typed specs with `compiled.CompiledAccount.read` and its siblings. Nothing is imported
here: the scheduler reads compiled specs only, and would pay for YAML and the reconcilers with every start.
"""
