"""What tests share: servers, places to save to, faults."""
