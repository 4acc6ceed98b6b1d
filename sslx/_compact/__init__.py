"""Compaction, in the order of the pipeline.

`jaxpr` traces a function, `rules` say what each primitive relates to what, `analysis`
finds what is alive, `rewrite` evaluates the program on that alone. `compact`, `units`
and `apply` are built on them; `plan` is what they hand on, as plain data.
"""
