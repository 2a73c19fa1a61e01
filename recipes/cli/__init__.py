"""What people type and see; nothing is computed here."""
