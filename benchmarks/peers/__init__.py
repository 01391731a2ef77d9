"""What our engines are measured beside; no engine of ours is imported here."""
