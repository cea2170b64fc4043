"""What was decoded from a capture: plain data, no bytes, no pid needed any more."""
