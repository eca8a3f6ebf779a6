"""The drill: faults thrown at a stack while generated documents go through it, and a judge of what became of them."""
