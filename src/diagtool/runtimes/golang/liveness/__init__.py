"""What each goroutine waits on, and whether anybody can still wake it."""
