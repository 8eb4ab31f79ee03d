"""A class that cannot be had."""

raise OSError("libbroken.so: cannot open shared object file")
