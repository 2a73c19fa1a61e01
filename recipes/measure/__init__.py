"""Quality, footprint and latency of whatever has an adapter."""
