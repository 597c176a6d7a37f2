"""What people type: the functions of the Python prompt, and the command sv."""
