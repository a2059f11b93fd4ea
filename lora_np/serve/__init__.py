"""Many adapters over one base in one batch, and an HTTP server in front of them."""
