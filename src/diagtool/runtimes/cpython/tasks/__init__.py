"""Asyncio: tasks of every loop, their await chains, what they wait on."""
