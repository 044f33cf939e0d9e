"""Native models: run a recognised policy by the C++ backend of the CPU in the place of its torch modules."""
