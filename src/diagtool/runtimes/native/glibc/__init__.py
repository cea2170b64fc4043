"""The heap of glibc's malloc (2.28 to 2.43) read from memory, without symbols."""
