"""What `odist bench` measures, one module per task. What is done with the numbers is left to odist.bench."""
