"""The service that keeps the network up."""
