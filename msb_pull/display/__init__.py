"""What is drawn and printed; only this room knows the screen."""
