"""CPU backend: a library in C++ with a plain C ABI, built at first start, and what Python says to it."""
