"""What a layer takes from the layers below it."""
