r"""Whether two answers are the same mathematics, decided exactly, in a process of its own.

Each rule lives in one place:

    notation.py   LaTeX or plain text -> tokens: fonts, spaces, numbers (separators of thousands,
                  repeating decimals), words
    reader.py     tokens -> a value: precedence, mixed numbers, plus-minus, bases, brackets
    units.py      words after a number: units, factors ("million"), and words that are neither
    values.py     the kinds of values that are no plain expression
    equality.py   when two values are equal: brackets, units, relations, sets; and expressions,
                  by refutation at points and by proof, never by agreement of digits
    library.py    integrals, sums, products and limits: math-verify reads and compares them, and
                  what it accepts is proved again
    worker.py     the process: limits, requests and replies

Nothing here imports the rest of `rmas_jax`, which would bring JAX into every worker; so imports are
relative, and the folder also works as a package of its own.
"""
