"""Source checks of Go: files parsed with tree-sitter's grammar, and what the checks look for in them."""
