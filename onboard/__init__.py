"""What any process of the board may know and ask."""
