"""The reference graph of a CPython process: what refers to what, what that keeps, and what nobody keeps."""
