"""One loop, and one step file per thing that is trained."""
