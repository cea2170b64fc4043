"""Structure found in captured bytes, one package a runtime."""
