"""The heap of Go: spans, objects in them, pointers between them, and what the roots reach."""
