"""Attention whose scores are laid out anew between its two products, found by following every element.

    axes       dimensions as axes, some of which every step carries along as they are
    cells      what each element is: a number, or an element of a value that was computed
    walk       the operators of a graph run on cells in the place of numbers
    operators  what each operator does to cells
    terms      what an element is, as an expression in the query's row s and the key's row t
    prove      whether a product is one attention over a band of keys

Longformer writes so: products of overlapping chunks whose diagonals become columns, and weights skewed back.
"""
