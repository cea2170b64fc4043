"""The heap of a CPython process: all its objects, by type, with what they own and who holds them."""
