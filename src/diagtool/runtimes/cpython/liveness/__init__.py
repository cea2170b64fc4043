"""Who can still wake whom, and who holds what."""
