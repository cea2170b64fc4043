"""Greenlets and gevent."""
