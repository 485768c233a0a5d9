"""What a pass is, and the manager that runs passes and enforces their contracts."""
