r"""Whether two answers are the same mathematics, decided exactly, in a process of its own.

Each rule lives in one place:

    notation.py     LaTeX or plain text -> tokens: fonts, spaces, numbers (separators of thousands,
                    repeating decimals), words
    expressions.py  tokens -> an expression: precedence, mixed numbers, symbols
    commands.py     LaTeX commands in expressions: fractions, roots, functions, matrices
    arithmetic.py   operations that refuse enormous and undefined results
    reader.py       tokens -> a whole answer: lists, brackets, relations, plus-minus, bases
    units.py        words after a number: units, factors ("million"), and words that are neither
    values.py       the kinds of values that are no plain expression
    equality.py     when two values are equal: brackets, units, names, relations
    sets.py         intervals, conditions and unions as sets of real numbers
    proofs.py       expressions: refutation at points, and proof
    library.py      integrals, sums, products and limits, as math-verify reads them
    worker.py       the process: limits, requests and replies

Nothing here imports the rest of `rmas_jax`, which would bring JAX into every worker; so imports are
relative, and the folder also works as a package of its own.
"""
