"""Linux cameras by the kernel's own interface."""
