"""What Hearthlink costs: ``python -m bench`` starts everything, measures it beside nginx and prints one table."""
