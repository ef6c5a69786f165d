"""How good a run is: numbers, and a page of pictures."""
