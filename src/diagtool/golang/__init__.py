"""What goroutines have in common wherever they were read: names of functions, waits, rows of a snapshot.

Dumps, profiles and traces (``ingest/``) and memory (``runtimes/golang/``) give the same stacks through this
package, so that the same leak has the same finding whatever it was seen in.
"""
