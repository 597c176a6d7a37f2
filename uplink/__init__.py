"""The service that brings records to the mothership."""
