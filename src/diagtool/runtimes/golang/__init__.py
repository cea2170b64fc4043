"""Go: goroutines from the memory of a process, live or core, without debug information, symbols or help."""
