"""What the commands do, one module for each family; their options are declared in main.py and apps/."""
