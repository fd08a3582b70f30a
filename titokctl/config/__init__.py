"""What a run is made of: models, recipes, settings, and how they are read. No torch here."""
